from __future__ import annotations

import base64
import csv
import io
import itertools
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr
from tests.catalog.rows import add_rows
from tests.qc.detector.labelled_screen import ingest_screen

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError
from cytolake.qc.labels import (
    LABELS,
    SHEET_COLUMNS,
    LabelSheetConfig,
    SiteLabel,
    export_label_sheet,
    newest_labels,
    read_label_sheet,
)
from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS
from cytolake.screens.simulated.screen import SimulatedScreen

SCREEN = SimulatedScreen(
    n_plates=2, n_batches=1, n_pathways=1, genes_per_pathway=1, n_compounds=0, n_positive_controls=0,
    sites_per_well=1, site_size_px=64, artefact_share=0.3, seed=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of two plates of ten sites."""
    root = tmp_path_factory.mktemp("labels")
    ingest_screen(root, SCREEN)
    return root / "catalog"


@pytest.fixture
def catalog(ingested: Path) -> Catalog:
    """The catalog without a label."""
    shutil.rmtree(ingested / "tables" / "qc_labels")
    return cytolake.catalog.open(ingested, create=True)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = SHEET_COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def append_verdicts(catalog: Catalog, values: dict[str, float], qc_id: str = "d1") -> None:
    known = {row["site_id"]: row for row in catalog.table("sites").to_pylist()}
    rows = [
        {"site_id": site, "plate_id": known[site]["plate_id"], "value": value, "is_pass": value <= 0.5}
        for site, value in values.items()
    ]
    add_rows(
        catalog, "qc_verdicts", *rows, qc_id=qc_id, level="site", well_id="", channel="DNA", channel_index=0,
        rule="learned_artefact", metric="artefact_probability", threshold=0.5, judged_at=datetime.now(UTC),
    )  # fmt: skip


def test_every_kind_of_artefact_is_a_label():
    assert ("normal", *ARTEFACT_KINDS, "other") == LABELS


def test_a_sheet_lists_the_chosen_sites_with_images_of_every_channel(catalog, tmp_path):
    sheet = export_label_sheet(catalog, tmp_path / "sheet", LabelSheetConfig(n_sites=6))
    assert sheet.table == tmp_path / "sheet" / "labels.csv"
    rows = lines(sheet.table)
    sites = {row["site_id"]: row for row in catalog.table("sites").to_pylist()}
    assert len(rows) == 6
    for row, card in zip(rows, sheet.cards, strict=True):
        assert tuple(row) == SHEET_COLUMNS
        site = sites[row["site_id"]]
        assert all(row[name] == card[name] == site[name] for name in ("site_id", "plate", "well", "site"))
        assert row["label"] == row["spoilt_channels"] == ""
        assert [image["channel"] for image in card["images"]] == site["channels"]
        assert all(len(image["shown"]) == 1 for image in card["images"]), "64 px are shown as they are"


def test_sites_of_a_plate_are_shown_on_one_scale(catalog, tmp_path):
    """A brighter site of a plate is a brighter image: an empty one must not be stretched to full contrast."""
    shown: dict[str, float] = {}
    for card in export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=20)).cards:
        (dna,) = (image["shown"][0] for image in card["images"] if image["channel"] == "DNA")
        shown[card["site_id"]] = float(np.asarray(Image.open(io.BytesIO(base64.b64decode(dna)))).mean())
    for plate in catalog.table("plates").column("plate_id").to_pylist():
        rows = catalog.table("qc_metrics", where=f"plate_id = '{plate}' AND channel = 'DNA'").to_pylist()
        assert spearmanr([row["mean"] for row in rows], [shown[row["site_id"]] for row in rows]).statistic > 0.8


def test_a_stratified_sheet_takes_plates_in_turn_and_spoilt_sites_more_often_than_chance(catalog, ingested, tmp_path):
    export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=8))
    rows = lines(tmp_path / "labels.csv")
    assert all(one["plate"] != next_one["plate"] for one, next_one in itertools.pairwise(rows))
    plate_map = lines(ingested.parent / "screens" / "simulated" / "platemap.csv")
    spoilt = {(well["plate"], well["well"]) for well in plate_map if well["artefact"]}
    assert len(spoilt) == 6  # of 20
    assert sum((row["plate"], row["well"]) in spoilt for row in rows) >= 4
    export_label_sheet(catalog, tmp_path / "again", LabelSheetConfig(n_sites=8))
    assert lines(tmp_path / "again" / "labels.csv") == rows
    export_label_sheet(catalog, tmp_path / "other", LabelSheetConfig(n_sites=8, seed=1))
    assert lines(tmp_path / "other" / "labels.csv") != rows


def test_an_uncertain_sheet_takes_the_sites_nearest_to_the_threshold(catalog, tmp_path):
    sites = sorted(catalog.table("sites").column("site_id").to_pylist())
    values = {site: 0.02 * i for i, site in enumerate(sites)}
    append_verdicts(catalog, values)
    export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=4, choose="uncertain", qc_id="d1"))
    plate_of = {row["site_id"]: row["plate_id"] for row in catalog.table("sites").to_pylist()}
    nearest = {
        site
        for plate in set(plate_of.values())
        for site in sorted((s for s in sites if plate_of[s] == plate), key=lambda s: abs(values[s] - 0.5))[:2]
    }
    assert {row["site_id"] for row in lines(tmp_path / "labels.csv")} == nearest
    with pytest.raises(CatalogError, match=r"qc_id d9: no verdicts of a detector\. Existing: d1"):
        export_label_sheet(catalog, tmp_path / "x", LabelSheetConfig(choose="uncertain", qc_id="d9"))


def test_labels_go_into_the_table_once_and_the_newest_counts(catalog, tmp_path):
    export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=3))
    sheet, rows = tmp_path / "labels.csv", lines(tmp_path / "labels.csv")
    rows[0]["label"], rows[1]["label"], rows[1]["spoilt_channels"] = "normal", "debris", "ER; DNA"
    write(sheet, rows)
    assert read_label_sheet(catalog, sheet, "ann") == 2
    assert read_label_sheet(catalog, sheet, "ann") == 0
    assert catalog.table("qc_labels").num_rows == 3  # two channels of one site
    found = {label.site_id: label for label in newest_labels(catalog)}
    assert found[rows[0]["site_id"]].label == "normal"
    assert (found[rows[1]["site_id"]].label, found[rows[1]["site_id"]].channels) == ("debris", ("DNA", "ER"))
    rows[1]["label"], rows[1]["spoilt_channels"] = "defocus", ""
    write(sheet, rows)
    assert read_label_sheet(catalog, sheet, "bob") == 2
    assert {label.site_id: label for label in newest_labels(catalog)}[rows[1]["site_id"]].label == "defocus"
    assert isinstance(newest_labels(catalog)[0], SiteLabel)


def test_a_label_that_is_changed_and_changed_back_counts_again(catalog, tmp_path):
    export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=2))
    rows = lines(tmp_path / "labels.csv")
    for n, label in enumerate(("noise", "normal", "noise", "normal")):
        rows[0]["label"] = label
        assert read_label_sheet(catalog, write(tmp_path / "filled.csv", rows), "ann") == 1
        assert [found.label for found in newest_labels(catalog)] == [label]
        assert catalog.table("qc_labels").num_rows == n + 1


def test_labelled_sites_are_not_shown_again(catalog, tmp_path):
    export_label_sheet(catalog, tmp_path / "1", LabelSheetConfig(n_sites=12))
    first = [row | {"label": "normal"} for row in lines(tmp_path / "1" / "labels.csv")]
    read_label_sheet(catalog, write(tmp_path / "filled.csv", first), "ann")
    export_label_sheet(catalog, tmp_path / "2", LabelSheetConfig(n_sites=12))
    second = lines(tmp_path / "2" / "labels.csv")
    assert len(second) == 8
    assert not {row["site_id"] for row in first} & {row["site_id"] for row in second}
    read_label_sheet(catalog, write(tmp_path / "filled.csv", [row | {"label": "other"} for row in second]), "ann")
    with pytest.raises(CatalogError, match="no site is left to label"):
        export_label_sheet(catalog, tmp_path / "3")


def test_a_partly_filled_sheet_is_not_overwritten(catalog, tmp_path):
    export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=2))
    export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=2))  # an empty one is
    rows = lines(tmp_path / "labels.csv")
    rows[0]["label"] = "normal"
    write(tmp_path / "labels.csv", rows)
    with pytest.raises(CatalogError, match="partly filled-in sheet"):
        export_label_sheet(catalog, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "blurry"}, r"line 3: found label 'blurry', expected one of normal, defocus"),
        ({"site_id": "f00d", "label": "noise"}, r"line 3: site 'f00d' is not in the catalog"),
        ({"label": "noise", "spoilt_channels": "DNA;Actin"}, r"line 3: found spoilt_channels DNA; Actin, expected"),
        ({"label": "noise", "spoilt_channels": "DNA;DNA"}, "expected each once"),
        ({"label": "normal", "spoilt_channels": "DNA"}, "line 3: a normal site with spoilt_channels DNA"),
        ({"site_id": "first", "label": "noise"}, r"line 3: site \w+ is listed twice, first in line 2"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_added(catalog, tmp_path, change, message):
    export_label_sheet(catalog, tmp_path, LabelSheetConfig(n_sites=2))
    rows = lines(tmp_path / "labels.csv")
    rows[0]["label"] = "normal"
    rows[1] |= change
    if rows[1]["site_id"] == "first":
        rows[1]["site_id"] = rows[0]["site_id"]
    with pytest.raises(CatalogError, match=message):
        read_label_sheet(catalog, write(tmp_path / "bad.csv", rows), "ann")
    assert catalog.table("qc_labels").num_rows == 0


def test_a_file_that_is_no_sheet_is_refused(catalog, tmp_path):
    with pytest.raises(CatalogError, match="no such file"):
        read_label_sheet(catalog, tmp_path / "none.csv", "ann")
    with pytest.raises(CatalogError, match="without label"):
        read_label_sheet(catalog, write(tmp_path / "a.csv", [], ("site_id", "well")), "ann")
    (tmp_path / "b.csv").write_bytes(b"site_id,label\n\xff\xfe,normal\n")
    with pytest.raises(CatalogError, match="not a CSV file in UTF-8"):
        read_label_sheet(catalog, tmp_path / "b.csv", "ann")
    with pytest.raises(CatalogError, match="labelled_by is empty"):
        read_label_sheet(catalog, tmp_path / "b.csv", " ")
    (tmp_path / "c.csv").write_text("\ufeffsite_id,label\n")  # as a spreadsheet saves it
    assert read_label_sheet(catalog, tmp_path / "c.csv", "ann") == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [({"n_sites": 0}, "n_sites 0"), ({"choose": "best"}, "'best'"), ({"choose": "uncertain"}, "needs the qc_id")],
)
def test_a_config_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LabelSheetConfig(**values)
