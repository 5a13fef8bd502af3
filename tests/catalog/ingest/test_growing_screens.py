"""A screen that grows for months: what is in the catalog stays recognised, also what earlier versions wrote."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import CONFIG, commit, commit_plate

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.plate_content import content_hash
from cytolake.catalog.ingest.plates import ingest_plates, stage_well, staging_of
from cytolake.catalog.ingest.screen_problems import image_of_plate
from cytolake.screens.sources import ScreenSource, list_screen

GUID = "AA847666-9AC4-4326-A184-8FC928D4368A"


@pytest.fixture
def catalog(tmp_path):
    return empty_catalog(tmp_path / "catalog")


def write(folder, names):
    """Images of 64 x 64 pixels."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(1, 999, (64, 64), dtype=np.uint16)
        tifffile.imwrite(folder / name, pixels, photometric="minisblack", metadata=None, software=False)


def metaxpress(run, plate="P1", wells=("A01", "A02")):
    return [f"{run}/TimePoint_1/{plate}_{well}_s1_w1{GUID}.tif" for well in wells]


def phenix(run):
    return [f"{run}/Images/r01c0{column}f01p01-ch1sk1fk1fl1.tiff" for column in (1, 2)]


def listed(catalog, folder, **fields):
    source = ScreenSource(screen="s", path=str(folder), **fields)
    return list_screen(source, channel_vocabulary().aliases, layout_presets(), image_of_plate(catalog, "s"))


def arrive(catalog, folder, **fields):
    """Ingest a folder; returns (skipped, refused) of an ingest that follows, which finds every plate there."""
    listing = listed(catalog, folder, **fields)
    known = set(catalog.table("plates").column("plate").to_pylist())
    for plate in listing.plates:
        if plate.plate not in known:
            commit(catalog, plate)
    report = ingest_plates(catalog, listing.plates, CONFIG, of_screens=listing.problems)
    assert not report.ingested
    return len(report.skipped), [problem.problem for problem in report.refused]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (metaxpress("P1/2024-01-08/101"), metaxpress("P1/2024-01-01/100")),  # also where the later one sorts first
        (metaxpress("P1/2024-01-01/100"), metaxpress("P1/2024-01-08/101")),
        (phenix("P1__2024-02-02-Measurement 2"), phenix("P1__2024-01-01-Measurement 1")),
    ],
)
def test_a_second_run_never_brings_the_first_in_again(catalog, tmp_path, first, second):
    folder = tmp_path / "screen"
    write(folder, first)
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,A01,TP53\nP1,A02,MYC\n")
    assert arrive(catalog, folder) == (1, [])
    before = catalog.table("sites").to_pylist()
    write(folder, second)
    for _ in range(2):
        assert arrive(catalog, folder) == (1, ["duplicate_plate"])
    assert catalog.table("plates").column("plate").to_pylist() == ["P1"]
    assert catalog.table("sites").to_pylist() == before
    assert sorted(catalog.table("wells").column("gene").to_pylist()) == ["MYC", "TP53"]
    assert catalog.table("quarantine", where="problem = 'duplicate_plate'").num_rows == 1


def test_a_plate_that_nobody_touched_is_skipped_as_others_arrive(catalog, tmp_path):
    folder = tmp_path / "screen"
    rows = "".join(f"P{n},A01,G{n}\nP{n},A02,H{n}\n" for n in (1, 2, 3))
    folder.mkdir()
    (folder / "platemap.csv").write_text("plate,well,gene\n" + rows)
    for n in (1, 2, 3):
        write(folder, metaxpress(f"P{n}/10{n}", f"P{n}"))
        assert arrive(catalog, folder) == (n, [])
    missing = catalog.table("quarantine", where="problem = 'plate_without_image'")
    assert sorted(missing.column("plate").to_pylist()) == ["P2", "P3"]  # each once, as long as it was missing


OF_EARLIER_VERSIONS = {
    "P1_100": "3d91eab54db0996ded9cb30095cc1683",
    "P1_101": "638e48ec56b2840604ba2c549315deab",
    "first": "17ae533c37e2055000cf287d31264eb5",
}
"""What `content_hash` gave before names and problems were of the plate alone: of two runs, each with its folder in its
name, and of the first plate of a screen whose map names a plate that is not there."""


def test_two_runs_that_an_earlier_version_named_stay_two_plates(catalog, tmp_path):
    folder = tmp_path / "screen"
    write(folder, [*metaxpress("P1/2024-01-01/100"), *metaxpress("P1/2024-01-08/101")])
    for plate in listed(catalog, folder, runs="each").plates:
        assert content_hash(plate) == OF_EARLIER_VERSIONS[plate.plate]
        commit(catalog, plate)
    assert arrive(catalog, folder) == (2, [])
    assert sorted(catalog.table("plates").column("plate").to_pylist()) == ["P1_100", "P1_101"]


def test_a_first_plate_that_an_earlier_version_hashed_with_its_screen_is_unchanged(catalog, tmp_path):
    folder = tmp_path / "screen"
    write(folder, metaxpress("P1/2024-01-01/100"))
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,A01,TP53\nP1,A02,MYC\nP2,A01,KRAS\n")
    (plate,) = listed(catalog, folder).plates
    assert content_hash(plate) != OF_EARLIER_VERSIONS["first"]
    staging = staging_of(catalog, plate, OF_EARLIER_VERSIONS["first"], CONFIG)
    for site in plate.sites:
        stage_well(staging, [site], plate.batch, CONFIG.crop_size)
    commit_plate(catalog, plate, OF_EARLIER_VERSIONS["first"], CONFIG)
    assert arrive(catalog, folder) == (1, [])
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,A01,TP53\nP1,A02,KRAS\nP2,A01,KRAS\n")
    assert arrive(catalog, folder) == (0, ["labels_changed"])
