from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cytolake.screens.images.pixels import read_site
from cytolake.screens.sources import ScreenSource, list_plates

METADATA = """<MetaData>
<prop id="spatial-calibration-state" type="bool" value="on"/>
<prop id="spatial-calibration-x" type="float" value="0.325"/>
<prop id="spatial-calibration-units" type="string" value="um"/>
<prop id="_IllumSetting_" type="string" value="{stain}"/>
</MetaData>"""
STAINS = {1: "DAPI", 2: "FITC &amp; more", 3: "DAPI"}


@pytest.fixture
def write_image():
    """Writes one image of an export: pixels equal to a number that grows with each image of the test."""
    count = iter(range(1, 10_000))

    def write(folder, well, site, wavelength, *, plate="demo_plate", thumbnail=False):
        n = next(count)
        guid = f"{n:08X}-3BFB-44F3-8214-{n:012X}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{plate}_{well}_s{site}_w{wavelength}{'_thumb' if thumbnail else ''}{guid}.tif"
        pixels = np.full((8, 9), n, np.uint16)
        tifffile.imwrite(
            folder / name, pixels, description=METADATA.format(stain=STAINS[wavelength]), metadata=None, **GREY
        )
        return n

    return write


GREY = {"photometric": "minisblack"}


def listed(folder, **fields):
    return list_plates(ScreenSource(screen="s", path=str(folder), **fields))


def test_every_time_and_focal_plane_is_a_site_with_the_channels_taken_there(tmp_path, write_image):
    export = tmp_path / "2024-04-22" / "1697"
    written = {}
    for time in (1, 2):
        for site in (1, 2):
            for wavelength in (1, 2):
                for z in (1, 2):
                    folder = export / f"TimePoint_{time}" / f"ZStep_{z}"
                    written[time - 1, str(site), str(z), wavelength] = write_image(folder, "C07", site, wavelength)
            written[time - 1, str(site), "", 3] = write_image(export / f"TimePoint_{time}", "C07", site, 3)
            write_image(export / f"TimePoint_{time}", "C07", site, 1, thumbnail=True)
    (plate,) = listed(tmp_path)
    assert plate.plate == "demo_plate"
    assert plate.pixel_size_um == pytest.approx(0.325)
    assert plate.channels == ("DAPI", "FITC & more", "DAPI w3")
    assert plate.problems == ()
    assert len(plate.sites) == 2 * 2 * 3
    wavelengths = {"DAPI": 1, "FITC & more": 2, "DAPI w3": 3}
    for site in plate.sites:
        for channel, pixels in zip(site.channels, read_site(site), strict=True):
            assert (pixels == written.pop((site.timepoint, site.site, site.z, wavelengths[channel]))).all()
    assert not written


def test_a_channel_taken_twice_at_one_place_is_reported(tmp_path, write_image, codes):
    write_image(tmp_path / "TimePoint_1", "A01", 1, 1)
    write_image(tmp_path / "TimePoint_1", "A01", 1, 1)
    (plate,) = listed(tmp_path)
    assert codes(plate) == ["duplicate_image"]


def test_two_runs_of_one_plate_are_one_plate_unless_each_is_wanted(tmp_path, write_image, of_screen):
    write_image(tmp_path / "1697" / "TimePoint_1", "A01", 1, 1)
    alone = listed(tmp_path)
    write_image(tmp_path / "1698" / "TimePoint_1", "A01", 1, 1)
    assert listed(tmp_path) == alone
    (problem,) = of_screen(tmp_path)
    assert (problem.problem, problem.plate, problem.file) == ("duplicate_plate", "demo_plate", "1698")
    assert [plate.plate for plate in listed(tmp_path, runs="each")] == ["demo_plate_1697", "demo_plate_1698"]


def test_an_export_without_time_folders_is_found_by_its_names(tmp_path, write_image):
    write_image(tmp_path, "A01", 1, 2)
    (plate,) = listed(tmp_path)
    assert (plate.sites[0].timepoint, plate.sites[0].z, plate.channels) == (0, "", ("FITC & more",))


def test_a_damaged_first_file_costs_the_channel_nothing(tmp_path, write_image):
    for well in ("A01", "A02", "A03"):
        write_image(tmp_path / "TimePoint_1", well, 1, 1)
    before = listed(tmp_path)
    for damage in (b"", b"II*\0cut", b"not a picture"):
        sorted((tmp_path / "TimePoint_1").iterdir())[0].write_bytes(damage)
        assert listed(tmp_path) == before


def test_a_channel_without_a_readable_file_says_that_its_stain_is_unknown(tmp_path, write_image):
    for well in ("A01", "A02"):
        write_image(tmp_path / "TimePoint_1", well, 1, 1)
    for file in (tmp_path / "TimePoint_1").iterdir():
        file.write_bytes(b"")
    (plate,) = listed(tmp_path)
    assert plate.channels == ("w1",)
    assert [(problem.problem, problem.channel) for problem in plate.problems] == [("unknown_stain", "w1")]
