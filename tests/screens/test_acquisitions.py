"""A plate is the same whatever else lies in the folder, and one image is in one plate."""

from __future__ import annotations

import itertools

import pytest

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.sources import ScreenSource, list_screen

PHENIX = "{run}/Images/r01c0{well}f01p01-ch1sk1fk1fl1.tiff"
METAXPRESS = "{run}/TimePoint_1/{plate}_A0{well}_s1_w1AA847666-9AC4-4326-A184-8FC928D4368{well}.tif"
RUNS = {
    "phenix": (
        PHENIX,
        [
            ("P1", "P1__2024-01-01T10_00_00-Measurement 1"),
            ("P1", "P1__2024-01-08T10_00_00-Measurement 2"),
            ("P2", "P2__2024-01-01T12_00_00-Measurement 1"),
            ("P2", "week2/P2__2024-01-01T12_00_00-Measurement 1"),
        ],
    ),
    "imagexpress": (
        METAXPRESS,
        [("P1", "P1/2024-01-01/100"), ("P1", "P1/2024-01-08/101"), ("P2", "P2/102"), ("P2", "again/102")],
    ),
}


def listing(folder, image_of=None, **fields):
    source = ScreenSource(screen="s", path=str(folder), **fields)
    return list_screen(source, channel_vocabulary().aliases, layout_presets(), image_of)


def images_of(plates):
    """What a catalog of these plates would say."""
    return lambda name: plates[name].sites[0].image_paths[0] if name in plates else ""


@pytest.fixture(params=sorted(RUNS))
def write_runs(request, tmp_path):
    """Writes some of the runs of a layout as a screen, with empty images."""
    template, runs = RUNS[request.param]

    def write(chosen):
        for plate, run in (runs[i] for i in chosen):
            for well in (1, 2):
                file = tmp_path / template.format(plate=plate, run=run, well=well)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        return tmp_path

    write.runs = runs
    return write


@pytest.mark.parametrize("order", list(itertools.permutations(range(4), 3)))
def test_a_plate_that_is_there_stays_what_it_is_as_the_screen_grows(write_runs, order):
    """In any order of arrival: the first run of a plate keeps name, files and problems, and each run is said once."""
    there: dict[str, object] = {}
    for n in range(1, len(order) + 1):
        folder = write_runs(order[:n])
        found = listing(folder, images_of(there))
        plates = {plate.plate: plate for plate in found.plates}
        assert len(plates) == len(found.plates)
        for name, plate in there.items():
            assert plates[name] == plate
        there = plates
        paths = [path for plate in found.plates for site in plate.sites for path in site.image_paths]
        assert len(paths) == len(set(paths))
        second = [problem for problem in found.problems if problem.problem == "duplicate_plate"]
        assert len(found.plates) + len(second) == n
        for problem in second:
            assert problem.file != plates[problem.plate].acquisition
            assert plates[problem.plate].acquisition in problem.found
            assert "plates replace" in problem.next_step
            assert "runs" in problem.next_step


def test_names_of_runs_hold_for_each_run_alone(write_runs):
    folder = write_runs(range(4))
    together = {plate.acquisition: plate.plate for plate in listing(folder, runs="each").plates}
    assert len(set(together.values())) == len(together)
    assert all("1" in name for name in together.values())


def test_a_run_that_the_catalog_has_as_a_plate_of_its_own_stays_that_plate(write_runs):
    """Earlier versions named two runs of a plate P1_100 and P1_101, or after their folders."""
    folder = write_runs([0, 1])
    before = {plate.plate: plate for plate in listing(folder, runs="each").plates}
    assert len(before) == 2
    found = listing(folder, images_of(before))
    assert {plate.plate: plate for plate in found.plates} == before
    assert found.problems == ()


def test_without_a_catalog_the_first_run_in_order_is_the_plate(write_runs):
    folder = write_runs([1, 0])
    (plate,) = listing(folder).plates
    assert plate.acquisition == write_runs.runs[0][1]


def test_a_moved_screen_is_recognised_by_the_folders_below_it(write_runs):
    folder = write_runs([0, 1])
    later = write_runs.runs[1][1]
    (plate,) = listing(folder, lambda name: f"/elsewhere/{later}/Images/x.tiff" if name == "P1" else "").plates
    assert plate.acquisition == later


def test_what_is_wrong_with_the_screen_is_no_part_of_a_plate(write_runs):
    folder = write_runs([0])
    alone = listing(folder)
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,A01,TP53\nP1,A02,MYC\n")
    mapped = listing(folder).plates
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,A01,TP53\nP1,A02,MYC\nP9,A01,x\n,B01,x\n")
    found = listing(folder)
    assert found.plates == mapped
    assert {problem.problem for problem in found.problems} == {"plate_without_image", "missing_plate"}
    assert alone.problems == ()
