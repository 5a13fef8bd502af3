"""Ingest: every pixel of a plate is read once, and rows go into the catalog. Pixels stay in their source.

Ray Data reads sites side by side; workers hold one site at a time and hand back its few rows. The driver gathers them
and commits a plate when its last site has come: one transaction for each table, `plates` last. Rows of a plate show
only once `plates` has it, so a killed driver leaves nothing to be seen, and the next run goes on where it stopped.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cytolake.catalog import ids
from cytolake.catalog.declared import channel_vocabulary, table_contract
from cytolake.catalog.plate_content import content_hash, content_number
from cytolake.catalog.site_rows import SiteRows, read_site_rows
from cytolake.catalog.tables import Catalog
from cytolake.catalog.wells import well_rows
from cytolake.screens.plate import Plate, Problem, SiteImage
from cytolake.screens.sources import ScreenSource, list_plates

Progress = Callable[[str, int, int], None]
"""What is worked on, how much is done, how much there is."""

_TEXT = pa.schema([(name, pa.string()) for name in Problem.__dataclass_fields__])  # of a problem, in its order


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """How plates are cut into crops, and how the reading is shared out."""

    crop_size: int = 64
    """Edge of the square crops that tile each site, pixels."""
    sites_per_task: int = 4
    """Sites that one Ray task reads, one after the other."""

    def __post_init__(self) -> None:
        for name in ("crop_size", "sites_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"ingest.{name}: found {getattr(self, name)}, expected 1 or more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What an ingest did."""

    ingested: tuple[str, ...]
    """Ids of plates that came into the catalog."""
    skipped: tuple[str, ...]
    """Ids of plates that were there already, unchanged."""
    refused: tuple[Problem, ...]
    """Plates that are there with other content, under the same name twice, or no longer where they were."""
    n_sites: int
    n_crops: int
    n_quarantined: int
    """Rows that the ingested plates put into quarantine."""


@dataclass(slots=True)
class PlateRows:
    """Rows of one plate, gathered while its sites are read."""

    sites: list[pa.Table] = field(default_factory=list)
    crops: list[pa.Table] = field(default_factory=list)
    qc_metrics: list[pa.Table] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def ingest_screens(
    catalog: Catalog, sources: Sequence[ScreenSource], config: IngestConfig, progress: Progress | None = None
) -> IngestReport:
    """Ingest every plate of the screens, with stains spelled as in catalog/channels.yaml where that knows them.

    Raises:
        ScreenError: A screen's folder is missing or holds nothing usable. Nothing was ingested.
    """
    spellings = channel_vocabulary().aliases
    plates = [plate for source in sources for plate in list_plates(source, spellings)]
    return ingest_plates(catalog, plates, config, progress)


def ingest_plates(
    catalog: Catalog, plates: Sequence[Plate], config: IngestConfig, progress: Progress | None = None
) -> IngestReport:
    """Ingest plates that their source has listed. Uses the Ray that runs, or starts a local one.

    A plate that is in the catalog with the same files and plate map is skipped; one that is there with others is
    refused with a reason in the report and in `quarantine`, and the rest go on.

    Args:
        catalog: Where the rows go.
        plates: As `list_plates` gives them.
        config: The crop grid.
        progress: Called with the number of sites read.
    """
    fresh: list[tuple[Plate, str]] = []
    skipped: list[str] = []
    refused: list[Problem] = []
    known = {row["plate_id"]: row for row in catalog.table("plates").to_pylist()}
    seen: dict[str, Plate] = {}
    for plate in plates:
        identity = ids.plate_id(plate.screen, plate.plate)
        if identity in seen:
            refused.append(_twice(plate, seen[identity]))
            continue
        seen[identity] = plate
        content = content_hash(plate)
        if identity not in known:
            fresh.append((plate, content))
            continue
        problem = _difference(catalog, plate, content, known[identity], config)
        if problem is None:
            skipped.append(identity)
        else:
            refused.append(problem)

    counts = {"n_sites": 0, "n_crops": 0, "n_quarantined": 0}
    ingested: list[str] = []
    for plate, content, rows in _measured(fresh, config, progress):
        outcome = commit_plate(catalog, plate, rows, content, config)
        if isinstance(outcome, Problem):
            refused.append(outcome)
            continue
        ingested.append(ids.plate_id(plate.screen, plate.plate))
        for name in counts:
            counts[name] += outcome[name]
    _quarantine_refused(catalog, refused)
    return IngestReport(ingested=tuple(ingested), skipped=tuple(skipped), refused=tuple(refused), **counts)


def commit_plate(
    catalog: Catalog, plate: Plate, rows: PlateRows, content: str, config: IngestConfig
) -> dict[str, Any] | Problem:
    """Commit one plate's rows, `plates` last. Calling it again, or from two processes, changes nothing.

    Returns:
        The row of `plates`, or why the plate was refused: another process ingested other content under its name.
    """
    identity = ids.plate_id(plate.screen, plate.plate)
    number = content_number(content, config.crop_size)
    now = datetime.datetime.now(datetime.UTC)
    sites = _join("sites", rows.sites)
    wells, map_problems = well_rows(plate, frozenset(sites.column("well").to_pylist()))
    quarantine = _quarantine_rows(identity, [*plate.problems, *map_problems, *rows.problems], now)
    tables = {
        "wells": table_contract("wells").rows(wells),
        "sites": sites,
        "crops": _join("crops", rows.crops),
        "qc_metrics": _join("qc_metrics", rows.qc_metrics),
        "quarantine": quarantine,
    }
    row = {
        "plate_id": identity,
        "screen": plate.screen,
        "plate": plate.plate,
        "batch": plate.batch,
        "source": plate.source,
        "reader": plate.reader,
        "content_hash": content,
        "channels": list(plate.channels),
        "pixel_size_um": plate.pixel_size_um,
        "n_wells": len(wells),
        "n_sites": sites.num_rows,
        "n_crops": tables["crops"].num_rows,
        "n_quarantined": quarantine.num_rows,
        "ingested_at": now,
    }
    for name, table in tables.items():
        catalog.write_plate(name, table, plate_id=identity, content=number)
    if any(catalog.plate_content(name, identity) != number for name in tables):
        return _changed(plate, "other files, from an ingest that runs now")
    catalog.append("plates", table_contract("plates").rows([row]), transaction=f"plate/{identity}")
    there = catalog.table("plates", where=f"plate_id = '{identity}'").to_pylist()[0]
    return row if there["content_hash"] == content else _changed(plate, f"content {there['content_hash']}")


def _measured(
    plates: Sequence[tuple[Plate, str]], config: IngestConfig, progress: Progress | None
) -> Iterator[tuple[Plate, str, PlateRows]]:
    """Each plate as soon as its last site has been read."""
    gathered = [PlateRows() for _ in plates]
    waiting = [len(plate.sites) for plate, _ in plates]
    total, done = sum(waiting), 0
    for (plate, content), rows, n_sites in zip(plates, gathered, waiting, strict=True):
        if n_sites == 0:
            yield plate, content, rows
    if total == 0:
        return
    for batch in _read_sites([plate for plate, _ in plates], config):
        touched = set()
        for index, sites, crops, qc_metrics, problems in zip(*(batch.column(i) for i in range(5)), strict=True):
            position = index.as_py()
            rows = gathered[position]
            for name, found in (("sites", sites), ("crops", crops), ("qc_metrics", qc_metrics)):
                if len(found):
                    getattr(rows, name).append(pa.Table.from_struct_array(found.values))
            rows.problems += [Problem(**problem) for problem in problems.as_py()]
            waiting[position] -= 1
            done += 1
            touched.add(position)
        if progress is not None:
            progress("sites", done, total)
        for position in sorted(touched):
            if waiting[position] == 0:
                plate, content = plates[position]
                yield plate, content, gathered[position]
                gathered[position] = PlateRows()  # its rows are committed: let them go


def _read_sites(plates: Sequence[Plate], config: IngestConfig) -> Iterator[pa.Table]:
    """One row for each site: index of its plate, and lists of the rows it gives."""
    import ray.data  # takes seconds, and a run that skips every plate needs none of it

    tasks = [
        {"plate": index, "batch": plate.batch, "site": json.dumps(asdict(site))}
        for index, plate in enumerate(plates)
        for site in plate.sites
    ]
    n_blocks = -(-len(tasks) // config.sites_per_task)
    dataset = ray.data.from_items(tasks, override_num_blocks=n_blocks).map_batches(
        partial(_measure_sites, crop_size=config.crop_size), batch_format="pyarrow", batch_size=None
    )
    yield from dataset.iter_batches(batch_format="pyarrow", batch_size=None)


def _measure_sites(tasks: pa.Table, *, crop_size: int) -> pa.Table:
    """Run in a Ray task: read some sites, one after the other."""
    found: list[SiteRows] = []
    for task in tasks.to_pylist():
        fields = json.loads(task["site"])
        site = SiteImage(**fields | {name: tuple(fields[name]) for name in ("channels", "image_paths")})
        found.append(read_site_rows(site, task["batch"], crop_size))
    columns = {"plate": tasks.column("plate").combine_chunks()}
    for name in ("sites", "crops", "qc_metrics"):
        rows_type = pa.list_(pa.struct(list(table_contract(name).schema)))
        columns[name] = pa.array([getattr(rows, name) for rows in found], rows_type)
    problems = [[asdict(problem) for problem in rows.problems] for rows in found]
    columns["problems"] = pa.array(problems, pa.list_(pa.struct(list(_TEXT))))
    return pa.table(columns)


def _join(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    """All rows in the order of their ids, whatever order the workers finished in."""
    contract = table_contract(name)
    joined = pa.concat_tables([contract.empty(), *(table.select(contract.schema.names) for table in tables)])
    return joined.sort_by([(column, "ascending") for column in contract.key])


def _quarantine_rows(identity: str, problems: Sequence[Problem], now: datetime.datetime) -> pa.Table:
    rows = {}
    for problem in problems:
        text = asdict(problem)
        key = ids.content_id("quarantine", identity, *(f"{name}={value}" for name, value in sorted(text.items())))
        rows[key] = {"quarantine_id": key, "plate_id": identity, "quarantined_at": now} | text
    return table_contract("quarantine").rows(rows[key] for key in sorted(rows))


def _quarantine_refused(catalog: Catalog, refused: Sequence[Problem]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for problem in refused:
        rows = _quarantine_rows(ids.plate_id(problem.screen, problem.plate), [problem], now)
        catalog.append("quarantine", rows, transaction=f"refused/{rows.column('quarantine_id')[0].as_py()}")


def _difference(
    catalog: Catalog, plate: Plate, content: str, known: dict[str, Any], config: IngestConfig
) -> Problem | None:
    """Why a plate that is in the catalog cannot simply be skipped; None where it can."""
    if known["content_hash"] != content:
        return _changed(plate, f"content {known['content_hash']}, ingested {known['ingested_at']:%Y-%m-%d %H:%M} UTC")
    sizes = catalog.sql(f"SELECT DISTINCT size FROM crops WHERE plate_id = '{known['plate_id']}'").column(0).to_pylist()
    if sizes and sizes != [config.crop_size]:
        return _refusal(
            plate,
            "other_crop_size",
            f"crop size {config.crop_size}",
            f"crop size {sizes[0]}, which the plate was ingested with",
            f"Set ingest.crop_size={sizes[0]}, or ingest into another catalog root.",
        )
    if "://" not in known["source"] and known["source"] != plate.source and not Path(known["source"]).exists():
        return _refusal(
            plate,
            "plate_moved",
            plate.source,
            f"{known['source']}, where the catalog reads its pixels",
            "Put the plate back or leave a link there, or ingest into another catalog root.",
        )
    return None


def _changed(plate: Plate, there: str) -> Problem:
    return _refusal(
        plate,
        "plate_changed",
        f"files or a plate map other than before, at {plate.source}",
        there,
        "Restore the plate; or give the new one a name of its own; or ingest into another catalog root. "
        "Crops and embeddings of the old content would otherwise pass for the new.",
    )


def _twice(plate: Plate, first: Plate) -> Problem:
    return _refusal(
        plate,
        "duplicate_plate",
        f"{plate.source}, a second plate of this name",
        f"one plate of this name in a screen, which is {first.source}",
        "Rename one of them, or put it into a screen of its own.",
    )


def _refusal(plate: Plate, problem: str, found: str, expected: str, next_step: str) -> Problem:
    return Problem(
        screen=plate.screen,
        plate=plate.plate,
        file=plate.source,
        problem=problem,
        found=found,
        expected=expected,
        next_step=next_step,
    )
