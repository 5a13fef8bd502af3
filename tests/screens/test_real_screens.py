"""The real screens next to the checkout: every screen can be listed and every site read."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cytolake.catalog.declared import layout_presets
from cytolake.screens.images.pixels import read_site
from cytolake.screens.sources import ScreenSource, list_plates

pytestmark = pytest.mark.real_data

SCREENS = {
    "cp_plate_row_1ch": {"AS_09047_050428030001": (48, 1, "uint8")},
    "cellprofiler_examples": {
        "AS_09125_050116030001": (1, 3, "uint8"),
        "01": (2, 3, "uint8"),
        "BBBC014": (2, 2, "uint8"),
    },
    "imagexpress_timelapse": {"1well-3C-2S-Zmix-T": (4, 3, "uint16")},
    "jump_BR00117006_site": {"BR00117006": (1, 3, "uint16")},
    "pediatric_BR00143976_6ch": {"BR00143976": (1, 6, "uint16")},
    "bbbc006_focus": {"mcf-z-stacks-03212011": (24, 1, "uint16")},
}


@pytest.fixture
def listed(real_data):
    def list_screen(name):
        if not (real_data / name).is_dir():
            pytest.skip(f"{name} is not among the real screens here")
        return list_plates(ScreenSource(screen=name, path=str(real_data / name)))

    return list_screen


@pytest.mark.parametrize("name", SCREENS)
def test_a_real_screen_lists_and_every_site_reads(listed, name):
    plates = listed(name)
    assert {plate.plate for plate in plates} == set(SCREENS[name])
    for plate in plates:
        n_sites, n_channels, dtype = SCREENS[name][plate.plate]
        assert len(plate.sites) == n_sites
        for site in plate.sites:
            pixels = read_site(site)
            assert pixels.shape[0] == n_channels == len(site.channels)
            assert pixels.dtype == dtype
            for channel, path in zip(pixels, site.image_paths, strict=True):
                np.testing.assert_array_equal(channel, tifffile.imread(path))


def test_real_problems_are_those_that_the_sources_have(real_data, listed, of_screen):
    found = {name: [problem.problem for plate in listed(name) for problem in plate.problems] for name in SCREENS}
    of_screens = {name: [problem.problem for problem in of_screen(real_data / name)] for name in SCREENS}
    assert (
        of_screens.pop("bbbc006_focus") == ["unknown_position"] * 12
    )  # point-spread and degradation images of no plate
    assert found.pop("cellprofiler_examples") == ["wells_assigned"]  # ExampleFly has positions and no wells
    for name in ("pediatric_BR00143976_6ch", "jump_BR00117006_site"):
        assert found.pop(name) == ["unlisted_files"]  # outlines of cells
    assert not any(found.values())
    assert not any(of_screens.values())


def test_the_timelapse_has_its_times_sites_and_pixel_size(listed):
    (plate,) = listed("imagexpress_timelapse")
    assert plate.channels == ("FITC", "Cy3", "Texas Red")
    assert plate.pixel_size_um == pytest.approx(13.5504)
    assert [(site.well, site.site, site.timepoint) for site in plate.sites] == [
        *(("C07", "1", 0), ("C07", "1", 1), ("C07", "2", 0), ("C07", "2", 1))
    ]


@pytest.mark.parametrize(
    ("name", "layout", "pattern"),
    [
        ("pediatric_BR00143976_6ch", "phenix", ""),
        ("jump_BR00117006_site", "phenix", ""),
        ("cp_plate_row_1ch", "regex", r".*/(?P<plate>AS_.*)_(?P<well>[A-P]\d\d)f(?P<site>\d\d)d(?P<channel>\d)\.TIF"),
    ],
)
def test_names_alone_place_every_image_where_the_index_does(real_data, listed, name, layout, pattern):
    (by_index,) = listed(name)
    source = ScreenSource(screen=name, path=str(real_data / name), layout=layout, pattern=pattern)
    (by_name,) = list_plates(source, presets=layout_presets())
    assert {problem.problem for problem in by_name.problems} <= {"unlisted_files"}  # outlines of cells
    assert len(by_name.channels) == len(by_index.channels)
    assert [(site.well, set(site.image_paths)) for site in by_name.sites] == [
        (site.well, set(site.image_paths)) for site in by_index.sites
    ]
