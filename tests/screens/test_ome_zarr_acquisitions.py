"""Multiplexing cycles, repeated acquisitions and derived images of OME-Zarr plates; plates in folders of runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.images.pixels import read_site
from cytolake.screens.sources import ScreenSource, list_screen

STAINS = {0: ("DAPI", "GFP"), 1: ("DAPI", "RFP"), 2: ("Alexa 647",)}


def listing(folder, **fields):
    source = ScreenSource(screen="s", path=str(folder), **fields)
    return list_screen(source, channel_vocabulary().aliases, layout_presets())


def declare(plate, acquisition_of):
    """Adds acquisitions to a plate's metadata, from the name of each image."""
    ids = sorted(set(acquisition_of.values()))
    groups = [plate / ".zattrs", *plate.glob("*/*/.zattrs")]
    for file in groups:
        ome = json.loads(file.read_text())
        if "plate" in ome:
            ome["plate"]["acquisitions"] = [{"id": each} for each in ids]
        if "well" in ome:
            for image in ome["well"]["images"]:
                image["acquisition"] = acquisition_of[image["path"]]
        file.write_text(json.dumps(ome))


@pytest.fixture
def write_cycles(tmp_path, write_zarr_plate):
    """A plate of two fields in each of some acquisitions, with the stains of each; images 0, 1 are of the first."""

    def write(stains, *, wells=("B/03", "C/04"), sizes=None, axes="cyx"):
        names = {cycle: [str(2 * cycle + field) for field in (0, 1)] for cycle in stains}
        plate = tmp_path / "P1.zarr"
        for cycle, labels in stains.items():
            part = write_zarr_plate(
                tmp_path / f"part{cycle}" / "P1.zarr",
                "0.4",
                wells=wells,
                sites=names[cycle],
                labels=labels,
                axes=axes if len(labels) == 2 else axes.replace("c", ""),
                sizes=sizes,
            )
            for well in wells:
                if plate.exists():
                    ome = json.loads((plate / well / ".zattrs").read_text())
                    ome["well"]["images"] += json.loads((part / well / ".zattrs").read_text())["well"]["images"]
                    (plate / well / ".zattrs").write_text(json.dumps(ome))
                    for name in names[cycle]:
                        shutil.move(part / well / name, plate / well / name)
            if not plate.exists():
                shutil.move(part, plate)
            shutil.rmtree(tmp_path / f"part{cycle}")
        declare(plate, {name: cycle for cycle, of_cycle in names.items() for name in of_cycle})
        return plate

    return write


def test_the_cycles_of_a_field_are_one_site_with_all_their_channels(tmp_path, write_cycles, site_pixels):
    write_cycles(STAINS)
    found = listing(tmp_path)
    (plate,) = found.plates
    assert plate.channels == ("DNA", "GFP", "DNA_cycle2", "RFP", "FarRed")
    assert [(site.well, site.site) for site in plate.sites] == [(w, s) for w in ("B03", "C04") for s in ("0", "1")]
    assert plate.problems == found.problems == ()
    for site in plate.sites:
        place = f"{site.well[0]}/{site.well[1:]}"
        cycles = [(site.site, "cyx"), (str(2 + int(site.site)), "cyx"), (str(4 + int(site.site)), "yx")]
        want = [site_pixels("P1", place, name, axes=axes).reshape(-1, 24, 32) for name, axes in cycles]
        np.testing.assert_array_equal(read_site(site), np.concatenate(want))
        np.testing.assert_array_equal(read_site(site, (1, 2, 3, 4)), np.concatenate(want)[:, 1:4, 2:6])


def test_cycles_keep_their_planes(tmp_path, write_cycles):
    write_cycles({0: ("DAPI", "GFP"), 1: ("DAPI", "RFP")}, axes="czyx", sizes={"z": 3})
    kept, joined, chosen = (listing(tmp_path, z=z).plates[0] for z in ("keep", "max", "sharpest"))
    assert len(kept.sites) == 3 * len(joined.sites) == 3 * len(chosen.sites)
    planes = [read_site(site) for site in kept.sites[:3]]
    np.testing.assert_array_equal(read_site(joined.sites[0]), np.max(planes, axis=0))
    assert any(np.array_equal(read_site(chosen.sites[0]), plane) for plane in planes)


def test_cycles_with_other_numbers_of_fields_stay_apart_and_are_reported(tmp_path, write_cycles):
    plate = write_cycles({0: ("DAPI", "GFP"), 1: ("DAPI", "RFP")}, wells=("B/03",))
    ome = json.loads((plate / "B/03/.zattrs").read_text())
    ome["well"]["images"].pop()
    (plate / "B/03/.zattrs").write_text(json.dumps(ome))
    found = listing(tmp_path)
    (listed,) = found.plates
    assert [(site.site, site.channels) for site in listed.sites] == [
        ("0", ("DNA", "GFP")),
        ("1", ("DNA", "GFP")),
        ("2", ("DNA_cycle2", "RFP")),
    ]
    assert [(problem.problem, problem.well) for problem in found.problems] == [("unmatched_cycles", "B03")]


def test_repeated_acquisitions_are_named_and_reported(tmp_path, write_cycles):
    write_cycles({0: ("DAPI", "GFP"), 3: ("DAPI", "GFP")}, wells=("B/03",))
    found = listing(tmp_path)
    assert [site.site for site in found.plates[0].sites] == ["0", "0_acquisition3", "1", "1_acquisition3"]
    assert [site.image_paths[0].rpartition("/")[2] for site in found.plates[0].sites] == ["0", "6", "1", "7"]
    (problem,) = found.problems
    assert problem.problem == "repeated_acquisition"
    assert "0, 3" in problem.found


def test_a_plate_of_one_acquisition_has_the_sites_that_its_images_name(tmp_path, write_cycles):
    write_cycles({0: ("DAPI", "GFP")})
    found = listing(tmp_path)
    assert [site.site for site in found.plates[0].sites] == ["0", "1"] * 2
    assert found.problems == ()


@pytest.mark.filterwarnings("ignore:Path .* contains non-alphanumeric")
def test_derived_images_and_plates_are_no_fields(tmp_path, write_zarr_plate):
    write_zarr_plate(tmp_path / "P1.zarr", "0.4", sites=("0", "1"), wells=("B/03",))
    before = listing(tmp_path).plates
    shutil.rmtree(tmp_path / "P1.zarr")
    write_zarr_plate(tmp_path / "P1.zarr", "0.4", sites=("0", "1", "0_registered", "1_mip"), wells=("B/03",))
    write_zarr_plate(tmp_path / "P1_mip.zarr", "0.4", sites=("0",), wells=("B/03",))
    found = listing(tmp_path)
    assert found.plates == before
    assert [(problem.problem, problem.file) for problem in found.problems] == [
        ("derived_copy", "P1.zarr/*_registered"),
        ("derived_copy", "P1.zarr/*_mip"),
        ("derived_copy", "P1_mip.zarr"),
    ]
    assert [plate.plate for plate in listing(tmp_path / "P1_mip.zarr").plates] == ["P1_mip"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_plates_in_folders_of_runs_are_found(tmp_path, write_zarr_plate, version):
    for place in ("run1/P1.zarr", "run2/P2.zarr", "2024/run3/P3.zarr", "P0.zarr"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        write_zarr_plate(tmp_path / place, version, wells=("B/03",), sites=("0",))
    assert sorted(plate.plate for plate in listing(tmp_path).plates) == ["P0", "P1", "P2", "P3"]
    shutil.rmtree(tmp_path / "P0.zarr")
    assert sorted(plate.plate for plate in listing(tmp_path).plates) == ["P1", "P2", "P3"]


def test_plates_of_one_name_in_two_runs_are_runs_of_one_plate(tmp_path, write_zarr_plate):
    for run in ("run1", "run2"):
        (tmp_path / run).mkdir()
        write_zarr_plate(tmp_path / run / "P1.zarr", "0.4", wells=("B/03",), sites=("0",))
    found = listing(tmp_path)
    assert [(plate.plate, plate.acquisition) for plate in found.plates] == [("P1", "run1/P1.zarr")]
    assert [(problem.problem, problem.file) for problem in found.problems] == [("duplicate_plate", "run2/P1.zarr")]
    assert [plate.plate for plate in listing(tmp_path, runs="each").plates] == ["run1_P1", "run2_P1"]


def test_results_in_zarr_below_images_do_not_change_the_layout(tmp_path, write_zarr_plate):
    name = "TimePoint_1/P1_A01_s1_w1AA847666-9AC4-4326-A184-8FC928D4368A.tif"
    (tmp_path / "P1" / name).parent.mkdir(parents=True)
    (tmp_path / "P1" / name).touch()
    before = listing(tmp_path).plates
    (tmp_path / "P1" / "results").mkdir()
    write_zarr_plate(tmp_path / "P1" / "results" / "P1.zarr", "0.4", wells=("B/03",), sites=("0",))
    assert listing(tmp_path).plates == before
