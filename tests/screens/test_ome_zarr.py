from __future__ import annotations

import json
import shutil

import numcodecs
import numpy as np
import pytest
import zarr

from cytolake.screens.pixels import read_site
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates

HEIGHT, WIDTH = 24, 32  # of what write_zarr_plate writes
VERSIONS = pytest.mark.parametrize("version", ["0.4", "0.5"])


def listed(folder):
    return list_plates(ScreenSource(screen="s", path=str(folder)))


def metadata_file(group, version):
    return group / (".zattrs" if version == "0.4" else "zarr.json")


def edit(group, version, change):
    """Changes the OME metadata of a group in place."""
    file = metadata_file(group, version)
    content = json.loads(file.read_text())
    change(content if version == "0.4" else content["attributes"]["ome"])
    file.write_text(json.dumps(content))


def compressor_of(version, name):
    if name is None:
        return None
    if version == "0.4":
        return {"blosc": numcodecs.Blosc("lz4"), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip()}[name]
    return {"blosc": zarr.codecs.BloscCodec(), "zstd": zarr.codecs.ZstdCodec(), "gzip": zarr.codecs.GzipCodec()}[name]


@VERSIONS
def test_a_plate_lists_and_reads_as_it_was_written(tmp_path, write_zarr_plate, site_pixels, version):
    write_zarr_plate(tmp_path / "P1.zarr", version)
    (plate,) = listed(tmp_path)
    assert (plate.plate, plate.batch, plate.reader, plate.problems) == ("P1", "P1", "ome-zarr", ())
    assert plate.channels == ("Hoechst 33342", "GFP")
    assert plate.pixel_size_um == pytest.approx(0.65)
    assert [(site.well, site.site) for site in plate.sites] == [
        *(("B02", "0"), ("B02", "1"), ("B03", "0"), ("B03", "1"), ("C02", "0"), ("C02", "1"))
    ]
    for site in plate.sites:
        written = site_pixels("P1", f"{site.well[0]}/{site.well[1:]}", site.site)
        np.testing.assert_array_equal(read_site(site), written)
        np.testing.assert_array_equal(read_site(site, (3, 5, 7, 11)), written[:, 3:10, 5:16])
        assert read_site(site).dtype == np.uint16


@VERSIONS
def test_each_time_and_focal_plane_is_a_site_of_its_own(tmp_path, write_zarr_plate, site_pixels, version):
    sizes = {"t": 2, "z": 3}
    write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",), axes="tczyx", sizes=sizes)
    (plate,) = listed(tmp_path)
    written = site_pixels("P1", "A/01", "0", axes="tczyx", sizes=sizes)
    assert len(plate.sites) == 6
    for site in plate.sites:
        np.testing.assert_array_equal(read_site(site), written[site.timepoint, :, int(site.z)])


@VERSIONS
def test_channels_without_labels_are_numbered(tmp_path, write_zarr_plate, version):
    plate_path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",), labels=None)
    edit(plate_path / "A" / "01" / "0", version, lambda ome: ome.pop("omero", None))
    assert listed(tmp_path)[0].sites[0].channels == ("c0", "c1")


@VERSIONS
def test_an_axis_without_a_unit_gives_no_pixel_size(tmp_path, write_zarr_plate, version):
    plate_path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",))
    edit(
        plate_path / "A" / "01" / "0",
        version,
        lambda ome: [axis.pop("unit", None) for axis in ome["multiscales"][0]["axes"]],
    )
    assert listed(tmp_path)[0].pixel_size_um is None


@VERSIONS
def test_a_plate_itself_can_be_the_screen(tmp_path, write_zarr_plate, version):
    path = write_zarr_plate(tmp_path / "P1.ome.zarr", version, wells=("A/1",), sites=("0",))
    (plate,) = listed(path)
    assert (plate.plate, plate.sites[0].well) == ("P1", "A01")


@VERSIONS
def test_what_is_missing_or_damaged_is_told_and_the_rest_is_listed(tmp_path, write_zarr_plate, version):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01", "A/02", "A/03", "A/04"))
    shutil.rmtree(path / "A" / "02" / "1")
    metadata_file(path / "A" / "03" / "0", version).write_text("{ cut")
    shutil.rmtree(path / "A" / "04")
    (plate,) = listed(tmp_path)
    assert [(site.well, site.site) for site in plate.sites] == [
        *(("A01", "0"), ("A01", "1"), ("A02", "0"), ("A03", "1"))
    ]
    assert [(p.problem, p.well, p.site, p.file) for p in plate.problems] == [
        ("missing_file", "A02", "1", "P1.zarr/A/02/1"),
        ("unreadable_file", "A03", "0", "P1.zarr/A/03/0"),
        ("unreadable_file", "A04", "", "P1.zarr/A/04"),
    ]


@VERSIONS
def test_a_folder_that_is_no_plate_is_told_and_alone_is_an_error(tmp_path, write_zarr_plate, version):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",))
    shutil.copytree(path / "A" / "01" / "0", tmp_path / "image.zarr")
    (tmp_path / "nothing.zarr").mkdir()
    (tmp_path / ".half-written.zarr").mkdir()
    (plate,) = listed(tmp_path)
    assert [(problem.problem, problem.plate) for problem in plate.problems] == [
        ("not_a_plate", "image"),
        ("not_a_plate", "nothing"),
    ]
    shutil.rmtree(path)
    with pytest.raises(ScreenError) as caught:
        listed(tmp_path)
    assert [problem.problem for problem in caught.value.problems] == ["no_images", "not_a_plate", "not_a_plate"]


@VERSIONS
def test_two_spellings_of_one_well_are_a_duplicate(tmp_path, write_zarr_plate, version, codes):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01", "A/02"), sites=("0",))

    def rename(ome):
        ome["plate"]["columns"][1]["name"] = "1"
        ome["plate"]["wells"][1]["path"] = "A/1"

    edit(path, version, rename)
    (path / "A" / "02").rename(path / "A" / "1")
    (plate,) = listed(tmp_path)
    assert codes(plate) == ["duplicate_well"]
    assert len(plate.sites) == 1


@VERSIONS
def test_an_image_path_that_leaves_the_well_is_refused(tmp_path, write_zarr_plate, version, codes):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0", "1"))
    edit(path / "A" / "01", version, lambda ome: ome["well"]["images"][1].update(path="../../../other.zarr"))
    (plate,) = listed(tmp_path)
    assert len(plate.sites) == 1
    assert codes(plate)[0] in ("path_outside_screen", "unreadable_file")


@VERSIONS
def test_a_damaged_plate_is_told_and_the_others_are_listed(tmp_path, write_zarr_plate, version):
    write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",))
    bad = write_zarr_plate(tmp_path / "P2.zarr", version, wells=("A/01",), sites=("0",))
    edit(bad, version, lambda ome: ome["plate"].update(wells="none"))
    (plate,) = listed(tmp_path)
    assert [(problem.problem, problem.plate) for problem in plate.problems] == [("unreadable_file", "P2")]


@VERSIONS
@pytest.mark.parametrize("pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"])
@pytest.mark.parametrize("compressor", ["blosc", "zstd", "gzip", None])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_cut_chunk_is_an_error_and_never_pixels(tmp_path, write_zarr_plate, version, pipeline, compressor, share):
    compressors = compressor_of(version, compressor)
    write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",), compressors=compressors)
    (site,) = listed(tmp_path)[0].sites
    level = tmp_path / "P1.zarr" / "A" / "01" / "0" / "0"
    (chunk,) = [file for file in level.rglob("*") if file.is_file() and file.suffix != ".json" and file.name[0] != "."]
    chunk.write_bytes(chunk.read_bytes()[: int(chunk.stat().st_size * share)])
    with zarr.config.set({"codec_pipeline.path": pipeline}), pytest.raises(ScreenError) as caught:
        read_site(site)
    (problem,) = caught.value.problems
    assert problem.problem == ("truncated_file" if compressor == "blosc" else "unreadable_file")
    assert (problem.plate, problem.well, problem.site) == ("P1", "A01", "0")
    assert site.image_paths[0] in problem.file


@VERSIONS
def test_a_declared_shape_past_the_budget_is_refused_before_memory_is_taken(tmp_path, write_zarr_plate, version):
    write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",))
    level = tmp_path / "P1.zarr" / "A" / "01" / "0" / "0"
    file = level / (".zarray" if version == "0.4" else "zarr.json")
    array = json.loads(file.read_text())
    array["shape"] = [2, 2_000_000, 2_000_000]
    file.write_text(json.dumps(array))
    site = listed(tmp_path)[0].sites[0]
    with pytest.raises(ScreenError, match="too large"):
        read_site(site)
    assert read_site(site, (0, 0, HEIGHT, WIDTH)).shape == (2, HEIGHT, WIDTH)


@VERSIONS
def test_an_image_that_changed_after_listing_is_refused(tmp_path, write_zarr_plate, version):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",))
    site = listed(tmp_path)[0].sites[0]
    with pytest.raises(ScreenError, match="shape mismatch"):
        read_site(site, (0, 0, HEIGHT + 1, WIDTH))
    shutil.rmtree(path)
    with pytest.raises(ScreenError, match="missing file"):
        read_site(site)
