from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.processes import commit_and_die, run_at_once
from tests.catalog.small_plate import CHANNELS, CONFIG, commit, contents, write_plate
from tests.fast_cases import fast_cases

import cytolake
import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, ids
from cytolake.catalog.ingest.plates import IngestConfig, _portions, ingest_plates, ingest_screens
from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import Plate, ScreenError
from cytolake.screens.sources import ScreenSource


@pytest.fixture
def plate(tmp_path: Path) -> Plate:
    return write_plate(tmp_path / "source")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return empty_catalog(tmp_path / "catalog")


@pytest.mark.usefixtures("local_ray")
def test_ingest_writes_every_row_once_and_a_second_run_reads_nothing(catalog, plate, monkeypatch):
    seen = []
    report = ingest_plates(catalog, [plate], CONFIG, lambda what, done, total: seen.append((what, done, total)))
    assert (report.n_sites, report.n_crops, report.n_quarantined) == (6, 6 * 2 * 3, 2)
    assert seen[-1] == ("sites", 6, 6)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)

    found = contents(catalog)
    without_ray = empty_catalog(catalog.root.parent / "other")
    commit(without_ray, plate)
    assert found == contents(without_ray)

    versions = catalog.versions()
    monkeypatch.setattr("cytolake.catalog.ingest.plates._read_wells", lambda *_: pytest.fail("read pixels again"))
    again = ingest_plates(catalog, [plate], CONFIG)
    assert again.skipped == report.ingested == (ids.plate_id("S", "P1"),)
    assert not again.ingested
    assert not again.refused
    assert catalog.versions() == versions


def test_rows_join_plate_map_quarantine_and_pixels(catalog, plate):
    commit(catalog, plate)
    wells = catalog.table("wells").sort_by("well").to_pylist()
    assert [(w["well"], w["perturbation"], w["control"], w["is_negative_control"], w["has_images"]) for w in wells] == [
        ("A01", "TP53", "", False, True),
        ("A02", "DMSO", "negative", True, True),
        ("B01", "", "", False, True),
        ("C01", "MYC", "", False, False),
    ]
    assert sorted(row["problem"] for row in catalog.table("quarantine").to_pylist()) == [
        "unknown_control",
        "well_without_image",
    ]
    row = catalog.table("plates").to_pylist()[0]
    assert (row["n_wells"], row["n_sites"], row["n_crops"], row["n_quarantined"]) == (4, 6, 36, 2)
    assert catalog.table("qc_metrics", where="channel = 'Actin'").num_rows == 6
    assert set(catalog.table("qc_metrics").column("max").to_pylist()) == {65535.0}

    crops = catalog.table("crops", where="well = 'B01'").to_pylist()[::-1]
    pixels = catalog.crop_pixels([crop["crop_id"] for crop in crops])
    whole = {site.site: read_site(site) for site in plate.sites if site.well == "B01"}
    for crop, found in zip(crops, pixels, strict=True):
        y, x, size = crop["y"], crop["x"], crop["size"]
        np.testing.assert_array_equal(found, whole[crop["site"]][:, y : y + size, x : x + size])
        assert found.dtype == np.uint16
    assert catalog.channels_of([crops[0]["crop_id"]]) == [CHANNELS]
    with pytest.raises(CatalogError, match="crop nonsense: 1 of 2 crop ids are not in the catalog"):
        catalog.crop_pixels([crops[0]["crop_id"], "nonsense"])


@pytest.mark.usefixtures("local_ray")
def test_a_site_that_cannot_be_read_is_quarantined_and_the_rest_is_there(catalog, plate):
    cut, gone = Path(plate.sites[0].image_paths[0]), Path(plate.sites[5].image_paths[1])
    cut.write_bytes(cut.read_bytes()[:2000])
    gone.unlink()
    report = ingest_plates(catalog, [plate], CONFIG)
    assert report.n_sites == 4
    rows = catalog.table("quarantine", where="file <> ''").sort_by("file").to_pylist()
    assert [(row["well"], row["site"], row["problem"], row["channel"]) for row in rows] == [
        ("A01", "1", "truncated_file", "DNA"),
        ("B01", "2", "missing_file", "Actin"),
    ]
    assert all(row["found"] and row["expected"] and row["next_step"] for row in rows)


def test_a_site_smaller_than_a_crop_is_reported_and_has_no_crops(catalog, plate):
    commit(catalog, plate, replace(CONFIG, crop_size=80))
    assert catalog.table("crops").num_rows == 0
    assert catalog.table("sites").num_rows == 6
    rows = catalog.table("quarantine", where="problem = 'site_smaller_than_crop'").to_pylist()
    assert len(rows) == 6
    assert rows[0]["found"] == "70 x 100 pixels"


def test_the_same_plate_elsewhere_has_the_same_ids(tmp_path):
    found = []
    for place in ("one", "two"):
        catalog = empty_catalog(tmp_path / place / "catalog")
        commit(catalog, write_plate(tmp_path / place))
        found.append(contents(catalog))
    for rows in found:
        for row in (*rows["sites"], *rows["plates"]):
            for name in ("image_paths", "source"):
                row.pop(name, None)
    assert found[0] == found[1]


@pytest.mark.usefixtures("local_ray")
def test_a_folder_that_is_listed_twice_is_refused_as_such(catalog, plate):
    report = ingest_plates(catalog, [plate, plate], CONFIG)
    assert len(report.ingested) == 1
    assert "Remove one of the two from screens.sources" in str(report.refused[0])


def test_a_plate_that_changed_moved_or_came_twice_is_refused_with_what_to_do(catalog, plate, tmp_path):
    commit(catalog, plate)
    before = contents(catalog)
    changed = replace(plate, wells=plate.wells[:1])
    for listed, config, problem in (
        ([changed], CONFIG, "labels_changed"),
        ([plate], replace(CONFIG, crop_size=16), "other_crop_size"),
        ([plate, write_plate(tmp_path / "copy")], CONFIG, "duplicate_plate"),
    ):
        report = ingest_plates(catalog, listed, config)
        assert [refused.problem for refused in report.refused] == [problem]
        words = {
            "labels_changed": "plates annotate",
            "other_crop_size": "catalog root",
            "duplicate_plate": "Rename one",
        }
        assert words[problem] in report.refused[0].next_step
        assert not report.ingested
        ingest_plates(catalog, listed, config)
        assert catalog.table("quarantine", where="problem = ?", parameters=[problem]).num_rows == 1
    copy = write_plate(tmp_path / "copy")
    assert not ingest_plates(catalog, [copy], CONFIG).refused  # a copy, while the first is still there
    Path(plate.source).rename(tmp_path / "away")
    (refused,) = ingest_plates(catalog, [copy], CONFIG).refused
    assert refused.problem == "plate_moved"
    command = refused.next_step.partition("again: ")[2].partition(". ")[0]
    subprocess.run(command, shell=True, check=True)
    assert not ingest_plates(catalog, [copy], CONFIG).refused
    after = contents(catalog)
    assert {k: v for k, v in after.items() if k != "quarantine"} == {
        k: v for k, v in before.items() if k != "quarantine"
    }


def test_a_plate_without_readable_sites_is_there_with_its_problems(catalog, plate):
    commit(catalog, replace(plate, sites=()))
    assert catalog.table("plates").column("n_sites").to_pylist() == [0]
    assert catalog.table("wells").num_rows == 3


@pytest.mark.parametrize("commits", [1, 5])
def test_a_killed_driver_leaves_nothing_to_see_and_the_next_run_completes(catalog, plate, tmp_path, commits):
    nothing = contents(catalog)
    assert run_at_once(commit_and_die, [(catalog.root, tmp_path / "source", commits)])[0] == [-9]
    left = contents(catalog)
    assert {k: v for k, v in left.items() if k != "quarantine"} == {
        k: v for k, v in nothing.items() if k != "quarantine"
    }
    commit(catalog, plate)
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, plate)
    assert contents(catalog) == contents(whole)


def test_a_plate_mended_after_a_kill_leaves_no_row_of_the_old_one(catalog, plate, tmp_path):
    assert run_at_once(commit_and_die, [(catalog.root, tmp_path / "source", 4)])[0] == [-9]
    mended = replace(plate, sites=plate.sites[:3], wells=plate.wells[:1], problems=())
    commit(catalog, mended)
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, mended)
    assert contents(catalog) == contents(whole)


def test_two_processes_that_ingest_one_plate_write_it_once(catalog, plate, tmp_path):
    assert run_at_once(commit_and_die, [(catalog.root, tmp_path / "source", 99)] * 2)[0] == [0, 0]
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, plate)
    assert contents(catalog) == contents(whole)


def changed(plate: Plate) -> Plate:
    """The same plate after its owner corrected it."""
    return replace(plate, sites=plate.sites[:3], wells=plate.wells[:1], problems=())


@pytest.mark.parametrize("moment", fast_cases(["sites", "quarantine", "plates"], "quarantine"))
def test_two_contents_of_one_plate_are_never_mixed(catalog, plate, tmp_path, moment):
    """Two ingests of a plate that was corrected between their starts: all but the row of `plates` of the second is
    written just before the first writes the table, or its own row."""
    second = cytolake.catalog.open(catalog.root)
    waiting = []
    second.show_plate = lambda *arguments, **named: waiting.append((arguments, named)) or True
    write, show = catalog.write_plate, catalog.show_plate

    def write_late(name, *arguments, **named):
        if name == moment:
            commit(second, changed(plate))
        return write(name, *arguments, **named)

    def show_late(*arguments, **named):
        if moment == "plates":
            commit(second, changed(plate))
        return show(*arguments, **named)

    catalog.write_plate, catalog.show_plate = write_late, show_late
    outcome = commit(catalog, plate)
    assert outcome.problem == "plate_changed"
    assert "runs now" in outcome.expected
    assert catalog.table("plates").num_rows == catalog.table("crops").num_rows == 0
    ((arguments, named),) = waiting
    del second.show_plate
    assert second.show_plate(*arguments, **named)
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, changed(plate))
    assert contents(catalog) == contents(whole)


@pytest.mark.usefixtures("local_ray")
def test_a_screen_that_cannot_be_read_is_reported_and_the_others_are_ingested(catalog, plate, tmp_path):
    folder = Path(plate.source)
    rows = [f"{path.name},P1,{','.join(path.stem.split('_'))}" for path in sorted(folder.iterdir())]
    (folder / "index.csv").write_text("\n".join(["path,plate,well,site,channel", *rows]) + "\n")
    sources = [ScreenSource(screen="gone", path=str(tmp_path / "gone")), ScreenSource(screen="S", path=str(folder))]
    for _ in range(2):
        with pytest.raises(ScreenError, match="gone"):
            ingest_screens(catalog, sources, CONFIG)
        assert catalog.table("sites").num_rows == 6
        problems = catalog.table("quarantine", where="screen = 'gone'").column("problem").to_pylist()
        assert problems == ["missing_folder"]
    other = empty_catalog(tmp_path / "other")
    with pytest.raises(ScreenError, match="gone"):
        ingest_screens(other, sources[:1], CONFIG)
    assert other.table("quarantine").num_rows == 0


def test_a_visible_plate_is_not_overwritten(catalog, plate):
    commit(catalog, plate)
    crops = catalog.table("crops")
    with pytest.raises(CatalogError, match="has this plate with other content"):
        catalog.write_plate("crops", crops, plate_id=ids.plate_id("S", "P1"), content=7)
    assert catalog.table("crops").num_rows == crops.num_rows


@pytest.mark.real_data
@pytest.mark.usefixtures("local_ray")
def test_a_real_screen_comes_in_whole(catalog, real_data):
    source = ScreenSource(screen="jump", path=str(real_data / "jump_BR00117006_site"))
    report = ingest_screens(catalog, [source], IngestConfig(crop_size=64))
    assert report.n_sites >= 1
    assert report.n_crops == catalog.table("crops").num_rows > 0
    crop = catalog.table("crops", where="foreground_share > 0.2").to_pylist()[0]
    pixels = catalog.crop_pixels([crop["crop_id"]])[0]
    assert pixels.shape == (crop["n_channels"], 64, 64)
    assert pixels.std() > 0


@pytest.mark.parametrize(("n_wells", "n_workers", "most"), [(1, 2, 16), (40, 2, 16), (1000, 64, 8), (3, 8, 1)])
def test_every_well_is_read_once_in_ever_smaller_portions(n_wells, n_workers, most):
    tasks = [{"well": str(i), "sites": ["", ""]} for i in range(n_wells)]
    portions = list(_portions(tasks, most, n_workers))
    assert [task for portion in portions for task in portion] == tasks
    sizes = [len(portion) for portion in portions]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= max(1, most // 2)
    assert sum(sizes[-n_workers:]) <= max(n_workers, n_wells // 2 + 1)
