"""Labels of sites by people: selection of the sites to label, the sheet to fill in, and the table qc_labels.

A sheet is a CSV file with an empty column `label` and thumbnails of the sites, which `reports.label_sheet` shows on a
page. Sites are selected by the distance of their metrics from their plate (artefacts are rare, so a random sample would
hold few), or by the uncertainty of a detector.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id, whole_id
from cytolake.catalog.tables import Catalog
from cytolake.qc.metrics import METRICS
from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS

NORMAL = "normal"
OTHER = "other"
LABELS = (NORMAL, *ARTEFACT_KINDS, OTHER)
"""Labels of a site; `other` is an artefact that has no name here."""

SHEET_COLUMNS = ("site_id", "plate", "well", "site", "label", "spoilt_channels")
CSV_NAME = "labels.csv"

Choice = Literal["stratified", "uncertain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSheetConfig:
    """Selection of the sites of a sheet, and size of their images."""

    n_sites: int = 60
    choose: Choice = "stratified"
    """`stratified`: as many typical as atypical sites of each plate, by their metrics. `uncertain`: the sites whose
    artefact probability is nearest to the detector's threshold."""
    qc_id: str = ""
    """The detector's verdicts; required for `uncertain`."""
    seed: int = 0
    thumbnail_px: int = 224
    """Edge of an image on the page. A larger site is shown downsampled, and its centre at full resolution."""

    def __post_init__(self) -> None:
        if self.n_sites < 1 or self.thumbnail_px < 32:
            raise ValueError(
                f"label sheet: n_sites {self.n_sites}, thumbnail_px {self.thumbnail_px}; expected 1 and 32 or more."
            )
        if self.choose not in get_args(Choice):
            raise ValueError(f"label sheet: choose {self.choose!r}, expected one of {', '.join(get_args(Choice))}.")
        if self.choose == "uncertain" and not self.qc_id:
            raise ValueError("label sheet: choose=uncertain needs the qc_id of a detector's verdicts; qc_id is empty.")


@dataclass(frozen=True, slots=True)
class SiteLabel:
    """The newest label of one site."""

    site_id: str
    plate_id: str
    label: str
    channels: tuple[str, ...]
    """Stains that the label refers to; empty if not specified."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSheet:
    """Sites to label."""

    sheet_id: str
    """Hash of the site ids, in order."""
    table: Path
    """The CSV file to fill in."""
    cards: tuple[dict[str, Any], ...]
    """For each site its site_id, plate, well and site, and `images`: for each channel its name `channel`, and `shown`,
    one or two JPEG images in base64."""


def export_label_sheet(catalog: Catalog, folder: str | Path, config: LabelSheetConfig | None = None) -> LabelSheet:
    """Write `labels.csv`, a sheet of sites to label with an empty column `label`, and make their thumbnails.

    Sites that already have a label are left out.

    Args:
        catalog: The catalog with the sites. Pixels are read from their source.
        folder: Folder of the sheet; created if it does not exist.

    Raises:
        CatalogError: No site is left to label, `qc_id` has no verdicts of a detector, or the folder holds a sheet that
            is partly filled in.
        ScreenError: The pixels of a site cannot be read.
    """
    config = config or LabelSheetConfig()
    folder = Path(folder)
    table = folder / CSV_NAME
    if table.exists() and any(row.get("label") for row in _read_csv(table)):
        raise CatalogError(
            f"{table}: a partly filled-in sheet. Read it first (cytolake qc read), or give another folder."
        )
    chosen = _choose_sites(catalog, config)
    if not chosen:
        if not catalog.sql("SELECT site_id FROM sites LIMIT 1").num_rows:
            raise CatalogError(f"{catalog.place}: no site to label: no plate is there. Ingest one: `cytolake ingest`.")
        raise CatalogError(f"{catalog.place}: no site is left to label: every site has a label. Ingest more plates.")
    sites = catalog.sql(
        "SELECT s.*, c.position FROM chosen c JOIN sites s ON s.site_id = c.site_id ORDER BY c.position",
        chosen=_positions(chosen),
    ).to_pylist()
    ranges = _shown_ranges(catalog, {site["plate_id"] for site in sites})
    folder.mkdir(parents=True, exist_ok=True)
    cards = tuple(_card(site, ranges, config.thumbnail_px) for site in sites)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SHEET_COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(site | {"label": "", "spoilt_channels": ""} for site in sites)
    return LabelSheet(sheet_id=content_id("label_sheet", *chosen), table=table, cards=cards)


def read_label_sheet(catalog: Catalog, path: str | Path, labelled_by: str) -> int:
    """Check a filled-in sheet and append its labels to the table `qc_labels`.

    Lines without a label are skipped, and lines that repeat the last label of the same person for the site.

    Args:
        catalog: The catalog to add the labels to.
        path: A CSV file with at least the columns `site_id` and `label`; `spoilt_channels` lists stains, separated by
            semicolons.
        labelled_by: Name of the person.

    Returns:
        Number of sites with new labels.

    Raises:
        CatalogError: An unknown label, site or stain, a repeated site, spoilt channels of a normal site, or a missing
            column; names line and value. Nothing is added.
    """
    path = Path(path)
    if not labelled_by.strip():
        raise CatalogError(f"{path}: labelled_by is empty, expected the name of the person who labelled.")
    labels: dict[str, tuple[int, str, list[str]]] = {}
    for line, row in enumerate(_read_csv(path), start=2):
        label = (row.get("label") or "").strip()
        if not label:
            continue
        if label not in LABELS:
            raise CatalogError(f"{path}, line {line}: found label {label!r}, expected one of {', '.join(LABELS)}.")
        site = (row["site_id"] or "").strip()
        if site in labels:
            raise CatalogError(f"{path}, line {line}: site {site} is listed twice, first in line {labels[site][0]}.")
        channels = [name.strip() for name in (row.get("spoilt_channels") or "").split(";") if name.strip()]
        if channels and label == NORMAL:
            raise CatalogError(
                f"{path}, line {line}: a normal site with spoilt_channels {'; '.join(channels)}. Clear one of the two."
            )
        labels[site] = (line, label, channels)
    sites = {
        row["site_id"]: row
        for row in catalog.sql(
            "SELECT s.site_id, s.plate_id, s.channels FROM chosen c JOIN sites s ON s.site_id = c.site_id",
            chosen=_positions(list(labels)),
        ).to_pylist()
    }
    who, now = labelled_by.strip(), datetime.now(UTC)
    before = _labels_of(catalog, who)
    rows, replaced, n_new = [], [], 0
    for site, (line, label, channels) in labels.items():
        if site not in sites:
            raise CatalogError(
                f"{path}, line {line}: site {site!r} is not in the catalog at {catalog.place}. "
                "Keep site_id as exported, or read the sheet into the catalog that it was exported from."
            )
        unknown = [name for name in channels if name not in sites[site]["channels"]]
        if unknown or len(set(channels)) < len(channels):
            raise CatalogError(
                f"{path}, line {line}: found spoilt_channels {'; '.join(channels)}, expected each once, of "
                f"{'; '.join(sites[site]['channels'])}."
            )
        given = {(channel, label) for channel in channels or [""]}
        if site in before and before[site][1] == given:
            continue
        n_new += 1
        replaced.append(f"{site}:{before[site][0] if site in before else ''}")
        rows += [
            {
                "site_id": site,
                "plate_id": sites[site]["plate_id"],
                "channel": channel,
                "label": label,
                "labelled_by": who,
                "labelled_at": now,
            }
            for channel, _ in sorted(given)
        ]
    # The replaced labels are part of the transaction's name: a label changed and changed back counts again.
    new = sorted(f"{row['site_id']}:{row['channel']}:{row['label']}" for row in rows)
    transaction = content_id("qc_labels", who, *sorted(replaced), *new)
    is_new = bool(rows) and catalog.append("qc_labels", table_contract("qc_labels").rows(rows), transaction=transaction)
    return n_new if is_new else 0


def newest_labels(catalog: Catalog) -> list[SiteLabel]:
    """The newest label of every labelled site of the catalog, ordered by site id."""
    rows = catalog.sql(
        "SELECT l.site_id, l.plate_id, l.label, l.channel FROM qc_labels l JOIN "
        "(SELECT site_id, max(labelled_at) AS newest FROM qc_labels GROUP BY site_id) m "
        "ON l.site_id = m.site_id AND l.labelled_at = m.newest JOIN sites s ON s.site_id = l.site_id "
        "ORDER BY l.site_id, l.labelled_by, l.channel"
    ).to_pylist()
    by_site: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_site[row["site_id"]].append(row)
    return [
        SiteLabel(site, rows[0]["plate_id"], rows[0]["label"], tuple(row["channel"] for row in rows if row["channel"]))
        for site, rows in by_site.items()
    ]


def _labels_of(catalog: Catalog, person: str) -> dict[str, tuple[datetime, set[tuple[str, str]]]]:
    """Site to the time of a person's last label, and its channels and labels."""
    newest: dict[str, tuple[datetime, set[tuple[str, str]]]] = {}
    for row in sorted(catalog.table("qc_labels").to_pylist(), key=lambda row: row["labelled_at"]):
        if row["labelled_by"] == person:
            at, labels = newest.get(row["site_id"], (None, set()))
            labels = labels if at == row["labelled_at"] else set()
            newest[row["site_id"]] = (row["labelled_at"], labels | {(row["channel"], row["label"])})
    return newest


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise CatalogError(f"{path}: no such file. Expected the CSV of a label sheet.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise CatalogError(f"{path}: not a CSV file in UTF-8 ({error}). Save the sheet again.") from error
    missing = [name for name in ("site_id", "label") if name not in (reader.fieldnames or ())]
    if missing:
        raise CatalogError(
            f"{path}: columns {', '.join(reader.fieldnames or ()) or 'none'}, without {', '.join(missing)}. Expected "
            f"{', '.join(SHEET_COLUMNS)}, separated by commas."
        )
    return rows


def _positions(sites: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.table({"site_id": pa.array(sites, pa.string()), "position": pa.array(range(len(sites)), pa.int64())})


def _choose_sites(catalog: Catalog, config: LabelSheetConfig) -> list[str]:
    """Ids of the sites, one of each plate in turn, so that every beginning of the sheet covers all plates."""
    labelled = set(catalog.sql("SELECT DISTINCT site_id FROM qc_labels").column(0).to_pylist())
    queues = _uncertain(catalog, config.qc_id) if config.choose == "uncertain" else _stratified(catalog, config.seed)
    queues = [[site for site in queue if site not in labelled] for queue in queues]
    chosen: list[str] = []
    for turn in range(max(map(len, queues), default=0)):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    return chosen[: config.n_sites]


def _uncertain(catalog: Catalog, qc_id: str) -> list[list[str]]:
    known = catalog.sql("SELECT DISTINCT qc_id FROM qc_verdicts WHERE rule = 'learned_artefact'")["qc_id"].to_pylist()
    qc_id = whole_id(qc_id, known, "qc_id") or qc_id
    rows = catalog.sql(
        "SELECT plate_id, site_id, min(abs(value - threshold)) AS distance FROM verdicts "
        "WHERE rule = 'learned_artefact' GROUP BY plate_id, site_id ORDER BY plate_id, distance, site_id",
        verdicts=catalog.table("qc_verdicts", where="qc_id = ?", parameters=[qc_id]),
    ).to_pylist()
    if not rows:
        raise CatalogError(
            f"qc_id {qc_id}: no verdicts of a detector. Existing: {', '.join(sorted(known)) or 'none'}. "
            "Judge the sites with a detector first."
        )
    queues: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        queues[row["plate_id"]].append(row["site_id"])
    return list(queues.values())


def _stratified(catalog: Catalog, seed: int) -> list[list[str]]:
    """Sites of each plate: in turn one of the most atypical tenth, one of the rest, one of the typical half."""
    columns = ", ".join(f'"{name}"' for name in METRICS)
    metrics = catalog.sql(f"SELECT plate_id, site_id, channel, {columns} FROM qc_metrics ORDER BY plate_id, site_id")
    if not metrics.num_rows:
        return []
    values_ND = np.stack([metrics.column(name).to_numpy().astype(float) for name in METRICS], axis=1)
    plates, channels = metrics.column("plate_id").to_pylist(), metrics.column("channel").to_pylist()
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, group in enumerate(zip(plates, channels, strict=True)):
        groups[group].append(i)
    unusual: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    sites = metrics.column("site_id").to_pylist()
    for (plate, _), members in groups.items():
        for i, distance in zip(members, _distance(np.nan_to_num(values_ND[members])), strict=True):
            unusual[plate][sites[i]] = max(unusual[plate][sites[i]], float(distance))
    queues = []
    for plate in sorted(unusual):
        ranked = sorted(unusual[plate], key=lambda site: (unusual[plate][site], site))
        cuts = [0, len(ranked) // 2, len(ranked) * 9 // 10, len(ranked)]
        strata = [ranked[a:b] for a, b in itertools.pairwise(cuts)]
        rng = np.random.default_rng([seed, int(content_id(plate)[:8], 16)])
        shuffled = [[stratum[i] for i in rng.permutation(len(stratum))] for stratum in strata]
        queues.append([s[turn] for turn in range(len(ranked)) for s in reversed(shuffled) if turn < len(s)])
    return queues


def _distance(values_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance of the most atypical metric from the median, in robust deviations."""
    median = np.median(values_ND, axis=0)
    deviation = 1.4826 * np.median(np.abs(values_ND - median), axis=0)
    floor = np.maximum(0.02 * np.abs(median), 1e-3)
    return np.asarray((np.abs(values_ND - median) / np.maximum(deviation, floor)).max(axis=1))


def _shown_ranges(catalog: Catalog, plates: set[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Counts shown as black and white, equal for all sites of a plate: an empty site must not look like a full one."""
    rows = catalog.sql(
        "SELECT plate_id, channel, median(p01) AS low, quantile_cont(p99, 0.8) AS high FROM qc_metrics "
        "GROUP BY plate_id, channel"
    ).to_pylist()
    return {(row["plate_id"], row["channel"]): (row["low"], row["high"]) for row in rows if row["plate_id"] in plates}


def _card(
    site: dict[str, Any], ranges: dict[tuple[str, str], tuple[float, float]], thumbnail_px: int
) -> dict[str, Any]:
    from cytolake.screens.images.pixels import read_site, site_image

    pixels = read_site(site_image(site))
    height, width = pixels.shape[1:]
    images = []
    for channel, name in zip(pixels, site["channels"], strict=True):
        low, high = ranges.get((site["plate_id"], name), (float(channel.min()), float(channel.max())))
        grey = _shades((channel.astype(np.float32) - low) / np.float32(max(high - low, 1e-9)))
        top, left = max(0, (height - thumbnail_px) // 2), max(0, (width - thumbnail_px) // 2)
        middle = grey[top : top + thumbnail_px, left : left + thumbnail_px]
        shown = [_jpeg(grey, thumbnail_px)]
        if max(height, width) > 1.5 * thumbnail_px:
            shown.append(_jpeg(middle, thumbnail_px))
        images.append({"channel": name, "shown": shown})
    return {name: site[name] for name in ("site_id", "plate", "well", "site")} | {"images": images}


def _shades(scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey levels of counts, scaled so that 0..1 is typical of the plate; brighter structures are compressed."""
    usual = 0.8 * np.sqrt(np.clip(scaled, 0, 1))  # square root: dim structures stay visible
    above = 0.2 * (1 - 1 / np.maximum(scaled, 1))
    return np.asarray(255 * (usual + above), np.uint8)


def _jpeg(grey: NDArray[np.uint8], size_px: int) -> str:
    from PIL import Image

    image = Image.fromarray(grey)
    if max(grey.shape) > size_px:
        image.thumbnail((size_px, size_px), Image.Resampling.BOX)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return base64.b64encode(data.getvalue()).decode()
