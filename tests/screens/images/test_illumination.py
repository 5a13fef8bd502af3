from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cytolake.catalog.declared import channel_vocabulary
from cytolake.screens.images.pixels import read_site
from cytolake.screens.sources import ScreenSource, list_plates


def listed(folder, **fields):
    return list_plates(ScreenSource(screen="s", path=str(folder), **fields), channel_vocabulary().aliases)


@pytest.fixture
def screen(tmp_path, write_indexed_screen):
    """Plates P1 and P2 with a well of two channels each."""
    rows = [{"plate": plate, "channel": channel} for plate in ("P1", "P2") for channel in ("DAPI", "ER")]
    return write_indexed_screen(tmp_path / "screen", rows)


def write_function(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    function = np.linspace(value, 2 * value, 24 * 32, dtype=np.float32).reshape(24, 32)
    if path.suffix == ".npy":
        np.save(path, function)
    else:
        tifffile.imwrite(path, function, photometric="minisblack")
    return function


def corrected(site, functions):
    """By the definition: raw counts divided by the channel's function, rounded, within the range of the type."""
    raw = read_site(site, is_corrected=False).astype(np.float64)
    return np.stack([np.clip(np.rint(raw[i] / function), 0, 65535) for i, function in enumerate(functions)])


@pytest.mark.parametrize("suffix", ["npy", "tif"])
@pytest.mark.parametrize(
    "name", ["{plate}/{plate}_Illum{channel}", "{plate}_{channel}", "Illumination_{plate}-{channel}"]
)
def test_functions_of_a_folder_are_found_by_plate_and_channel_in_their_names(screen, name, suffix):
    functions = {
        (plate, channel): write_function(
            screen / "illum" / f"{name.format(plate=plate, channel=channel)}.{suffix}", value
        )
        for value, (plate, channel) in enumerate([("P1", "DNA"), ("P1", "ER"), ("P2", "DNA"), ("P2", "ER")], 1)
    }
    for plate in listed(screen, illumination="illum"):
        assert plate.problems == ()
        (site,) = plate.sites
        expected = corrected(site, [functions[plate.plate, channel] for channel in site.channels])
        np.testing.assert_allclose(read_site(site), expected, atol=1)  # half a count, divided in single precision


def test_a_function_without_a_plate_in_its_name_is_for_every_plate_that_has_none_of_its_own(screen):
    for_all = write_function(screen / "illum" / "IllumDNA.npy", 2)
    own = write_function(screen / "illum" / "P2_IllumDNA.npy", 3)
    for plate, function in zip(listed(screen, illumination="illum"), (for_all, own), strict=True):
        (site,) = plate.sites
        np.testing.assert_allclose(read_site(site)[0], corrected(site, [function])[0], atol=1)
        assert site.illumination_paths[1] == ""
        assert [(problem.problem, problem.channel) for problem in plate.problems] == [("missing_illumination", "ER")]


def test_a_path_with_plate_and_channel_names_one_function_as_the_source_spells_it(screen):
    for plate in ("P1", "P2"):
        for channel in ("DAPI", "ER"):
            write_function(screen / "corr" / plate / f"{channel}.npy", 2)
    for plate in listed(screen, illumination="corr/{plate}/{channel}.npy"):
        assert plate.problems == ()
        (site,) = plate.sites
        assert [path.rpartition("corr/")[2] for path in site.illumination_paths] == [
            f"{plate.plate}/DAPI.npy",
            f"{plate.plate}/ER.npy",
        ]


@pytest.mark.parametrize(
    "where", ["../corr/{channel}.npy", "/corr/{channel}.npy", "s3://bucket/{channel}.npy", "nowhere"]
)
def test_functions_that_cannot_be_had_are_reported_and_the_pixels_are_as_they_were(screen, where):
    write_function(screen.parent / "corr" / "DAPI.npy", 2)
    for plate in listed(screen, illumination=where):
        assert len(plate.problems) == 2
        assert {problem.problem for problem in plate.problems} <= {"path_outside_screen", "missing_illumination"}
        (site,) = plate.sites
        np.testing.assert_array_equal(read_site(site), read_site(site, is_corrected=False))


def test_a_column_of_the_index_names_functions_and_none_leaves_them_aside(tmp_path, write_indexed_screen):
    columns = ("path", "plate", "well", "site", "channel", "illumination")
    rows = [{"channel": "DAPI", "illumination": "flat.npy"}, {"channel": "ER", "illumination": ""}]
    write_indexed_screen(tmp_path, rows, columns)
    function = write_function(tmp_path / "flat.npy", 2)
    (site,) = listed(tmp_path)[0].sites
    assert site.illumination_paths == (str(tmp_path / "flat.npy"), "")
    np.testing.assert_allclose(read_site(site)[0], corrected(site, [function])[0], atol=1)
    assert listed(tmp_path, illumination="none")[0].sites[0].illumination_paths == ()
