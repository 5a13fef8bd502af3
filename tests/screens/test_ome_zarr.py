from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numcodecs
import numpy as np
import pytest
import zarr
from tests.fast_cases import fast_cases

from cytolake.screens.images.focus import focus_of
from cytolake.screens.images.pixels import read_site, resolve_sharpest
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates
from cytolake.storage import files as storage

HEIGHT, WIDTH = 24, 32  # of what write_zarr_plate writes
VERSIONS = pytest.mark.parametrize("version", fast_cases(["0.4", "0.5"], "0.5"))
BOTH_VERSIONS = pytest.mark.parametrize("version", ["0.4", "0.5"])


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


@BOTH_VERSIONS
def test_a_plate_lists_and_reads_as_it_was_written(tmp_path, write_zarr_plate, site_pixels, version):
    write_zarr_plate(tmp_path / "P1.zarr", version)
    (plate,) = listed(tmp_path)
    assert (plate.plate, plate.batch, plate.reader, plate.problems) == ("P1", "s/P1", "ome-zarr", ())
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


@BOTH_VERSIONS
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
def test_what_is_missing_or_damaged_is_reported_and_the_rest_is_listed(tmp_path, write_zarr_plate, version):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01", "A/02", "A/03", "A/04"))
    shutil.rmtree(path / "A" / "02" / "1")
    metadata_file(path / "A" / "03" / "0", version).write_text("{ cut")
    shutil.rmtree(path / "A" / "04")
    (plate,) = listed(tmp_path)
    assert [(site.well, site.site) for site in plate.sites] == [
        *(("A01", "0"), ("A01", "1"), ("A02", "0"), ("A03", "1"))
    ]
    found = [(p.problem, p.well, p.site, p.file) for p in plate.problems]
    assert sorted(found, key=lambda problem: problem[1]) == [
        ("missing_file", "A02", "1", "P1.zarr/A/02/1"),
        ("unreadable_file", "A03", "0", "P1.zarr/A/03/0"),
        ("well_without_image", "A04", "", "P1.zarr/A/04"),
    ]


@VERSIONS
def test_a_folder_that_is_no_plate_is_reported_and_alone_is_an_error(tmp_path, write_zarr_plate, of_screen, version):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",))
    shutil.copytree(path / "A" / "01" / "0", tmp_path / "image.zarr")
    (tmp_path / "nothing.zarr").mkdir()
    (tmp_path / ".half-written.zarr").mkdir()
    (plate,) = listed(tmp_path)
    assert plate.problems == ()
    assert [(problem.problem, problem.plate) for problem in of_screen(tmp_path)] == [
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


@BOTH_VERSIONS
def test_an_image_path_that_leaves_the_well_is_refused(tmp_path, write_zarr_plate, version, codes):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0", "1"))
    edit(path / "A" / "01", version, lambda ome: ome["well"]["images"][1].update(path="../../../other.zarr"))
    (plate,) = listed(tmp_path)
    assert len(plate.sites) == 1
    assert codes(plate)[0] in ("path_outside_screen", "unreadable_file")


@VERSIONS
def test_a_damaged_plate_is_reported_and_the_others_are_listed(tmp_path, write_zarr_plate, of_screen, version):
    write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01",), sites=("0",))
    bad = write_zarr_plate(tmp_path / "P2.zarr", version, wells=("A/01",), sites=("0",))
    edit(bad, version, lambda ome: ome["plate"].update(wells="none"))
    assert [plate.plate for plate in listed(tmp_path)] == ["P1"]
    assert [(problem.problem, problem.plate) for problem in of_screen(tmp_path)] == [("unreadable_file", "P2")]


@BOTH_VERSIONS
@pytest.mark.parametrize("pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"])
@pytest.mark.parametrize(
    ("compressor", "share"),
    fast_cases(
        itertools.product(["blosc", "zstd", "gzip", None], [0.0, 0.001, 0.5, 0.99]),
        ("blosc", 0.99),
        ("zstd", 0.5),
        ("gzip", 0.0),
        (None, 0.99),
    ),
)
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


@BOTH_VERSIONS
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


@pytest.fixture
def uploaded(s3_bucket):
    """Copies a folder into the test's bucket; gives its URI."""

    def upload(folder, name="screen"):
        files = storage.file_system(s3_bucket)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                files.pipe_file(f"{s3_bucket}/{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"{s3_bucket}/{name}"

    return upload


@pytest.mark.parametrize("version", fast_cases(["0.4", "0.5"], "0.5"))
def test_a_plate_in_a_bucket_lists_and_reads_as_on_a_disk(tmp_path, write_zarr_plate, uploaded, version):
    write_zarr_plate(tmp_path / "P1.zarr", version, wells=("B/02", "B/03"))
    (local,), (remote,) = listed(tmp_path), listed(uploaded(tmp_path))
    assert [replace(site, image_paths=()) for site in remote.sites] == [
        replace(site, image_paths=()) for site in local.sites
    ]
    assert (remote.channels, remote.pixel_size_um, remote.problems) == (local.channels, local.pixel_size_um, ())
    for there, here in zip(remote.sites, local.sites, strict=True):
        np.testing.assert_array_equal(read_site(there), read_site(here))
        np.testing.assert_array_equal(read_site(there, (3, 5, 7, 11)), read_site(here, (3, 5, 7, 11)))


@pytest.mark.parametrize("version", fast_cases(["0.4", "0.5"], "0.5"))
def test_what_is_wrong_with_a_plate_in_a_bucket_is_reported_as_on_a_disk(
    tmp_path, write_zarr_plate, uploaded, of_screen, version
):
    path = write_zarr_plate(tmp_path / "P1.zarr", version, wells=("A/01", "A/02"))
    shutil.rmtree(path / "A" / "02" / "1")
    metadata_file(path / "A" / "01" / "0", version).write_text("{ cut")
    shutil.copytree(path / "A" / "01" / "1", tmp_path / "image.zarr")
    bucket = uploaded(tmp_path)
    local, remote = (
        [p for plate in listed(place) for p in plate.problems] + list(of_screen(place)) for place in (tmp_path, bucket)
    )
    assert [(p.problem, p.plate, p.well, p.site, p.file) for p in remote] == [
        (p.problem, p.plate, p.well, p.site, p.file) for p in local
    ]
    assert {p.problem for p in local} == {"missing_file", "unreadable_file", "not_a_plate"}


def test_a_plate_in_a_bucket_is_listed_without_a_look_at_its_chunks(tmp_path, write_zarr_plate, uploaded, monkeypatch):
    write_zarr_plate(tmp_path / "P1.zarr", "0.5", wells=("B/02", "B/03"))
    uri = uploaded(tmp_path)
    fetched, listings = [], []
    files = storage.file_system(uri)
    get, ls = files.cat_ranges, storage.list_one_level
    monkeypatch.setattr(files, "cat_ranges", lambda paths, *a, **k: fetched.append(len(paths)) or get(paths, *a, **k))
    monkeypatch.setattr(storage, "list_one_level", lambda place: listings.append(place) or ls(place))
    listed(uri)
    assert listings == [uri]
    assert sum(fetched) <= 2 + 2 * 2 + 2 * (2 + 2 * 4)  # the plate, its wells, its images and their arrays, with probes
    assert len(fetched) <= 11  # and these side by side: as many times for a plate of any size


@VERSIONS
@pytest.mark.parametrize("chunks", [(1, 1, 24, 32), (2, 3, 24, 32), (2, 2, 7, 32)])
def test_a_projection_of_focal_planes_is_their_maximum(tmp_path, version, chunks, rewrite_array):
    pixels, site = rewrite_array(tmp_path, version, chunks)
    site = replace(site, z="max", planes=(5, 5), plane_names=tuple("01234"))
    np.testing.assert_array_equal(read_site(site), pixels.max(axis=1))
    np.testing.assert_array_equal(read_site(site, (3, 5, 7, 11)), pixels.max(axis=1)[:, 3:10, 5:16])
    first = replace(site, planes=(2, 2))
    np.testing.assert_array_equal(read_site(first), pixels[:, :2].max(axis=1))


@VERSIONS
def test_the_sharpest_focal_plane_is_found(tmp_path, version, rewrite_array):
    pixels, site = rewrite_array(tmp_path, version, (2, 3, 24, 32), blur=True)
    resolved = resolve_sharpest(replace(site, z="sharpest", planes=(5, 5), plane_names=tuple("01234")))
    assert (resolved.z, resolved.planes) == ("3", ())
    assert np.argmax([focus_of(plane) for plane in pixels[0]]) == 3
    np.testing.assert_array_equal(read_site(resolved), pixels[:, 3])


@pytest.fixture
def rewrite_array(write_zarr_plate):
    """Writes a plate of one site, and its array again with five focal planes in the chunks given."""

    def write(folder, version, chunks, blur=False, **options):
        from scipy.ndimage import gaussian_filter

        sizes = {"z": 5}
        write_zarr_plate(folder / "P1.zarr", version, wells=("A/01",), sites=("0",), axes="czyx", sizes=sizes)
        pixels = np.random.default_rng(0).integers(0, 60_000, (2, 5, 24, 32), dtype=np.uint16)
        if blur:
            pixels = np.stack(
                [[gaussian_filter(c[0].astype(float), s) for s in (4, 3, 2, 0, 3)] for c in pixels]
            ).astype(np.uint16)
        level = folder / "P1.zarr" / "A" / "01" / "0" / "0"
        shutil.rmtree(level)
        formats = {"zarr_format": 2} if version == "0.4" else {"zarr_format": 3}
        array = zarr.create_array(level, shape=pixels.shape, dtype=pixels.dtype, chunks=chunks, **formats, **options)
        array[:] = pixels
        return pixels, listed(folder)[0].sites[0]

    return write


def test_shards_read_as_chunks_do_in_part_and_as_a_whole(tmp_path, rewrite_array, uploaded):
    pixels, site = rewrite_array(tmp_path, "0.5", (1, 1, 8, 8), shards=(2, 5, 24, 32))
    np.testing.assert_array_equal(read_site(replace(site, z="2")), pixels[:, 2])
    np.testing.assert_array_equal(read_site(replace(site, z="2"), (3, 5, 7, 11)), pixels[:, 2, 3:10, 5:16])
    (remote,) = listed(uploaded(tmp_path))
    np.testing.assert_array_equal(read_site(replace(remote.sites[0], z="4")), pixels[:, 4])


@pytest.mark.parametrize(
    ("dtype", "compressor", "order"),
    [
        ("<u2", "blosc", "C"),
        (">u2", "zstd", "F"),
        ("|u1", "gzip", "C"),
        ("<f4", "zlib", "F"),
        ("<i4", "lz4", "C"),
        (">f8", None, "F"),
        ("<f2", None, "C"),
    ],
)
def test_zarr_v2_arrays_of_every_order_type_and_compressor_read_back(tmp_path, rewrite_array, order, dtype, compressor):
    codecs = {
        **{"blosc": numcodecs.Blosc("zstd", shuffle=2), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip()},
        **{"zlib": numcodecs.Zlib(), "lz4": numcodecs.LZ4(), None: None},
    }
    pixels, site = rewrite_array(tmp_path, "0.4", (1, 1, 24, 32))
    level = tmp_path / "P1.zarr" / "A" / "01" / "0" / "0"
    shutil.rmtree(level)
    array = zarr.create_array(
        level, shape=pixels.shape, dtype=dtype, chunks=(2, 2, 10, 9), zarr_format=2, order=order,
        compressors=codecs[compressor],
    )  # fmt: skip
    array[:] = pixels.astype(dtype)
    read = read_site(replace(site, z="1"))
    np.testing.assert_array_equal(read, pixels.astype(dtype)[:, 1])
    assert read.dtype == np.dtype(dtype).newbyteorder("=") or read.dtype == np.dtype(dtype)


def test_axes_in_another_order_read_as_channels_rows_and_columns(tmp_path, rewrite_array):
    pixels, site = rewrite_array(tmp_path, "0.4", (1, 1, 24, 32))
    group = tmp_path / "P1.zarr" / "A" / "01" / "0"
    shutil.rmtree(group / "0")
    array = zarr.create_array(group / "0", shape=(5, 32, 24, 2), dtype="u2", chunks=(1, 9, 9, 2), zarr_format=2)
    array[:] = pixels.transpose(1, 3, 2, 0)
    edit(group, "0.4", lambda ome: ome["multiscales"][0].update(axes=[{"name": name} for name in "zxyc"]))
    (site,) = [site for site in listed(tmp_path)[0].sites if site.z == "3"]
    np.testing.assert_array_equal(read_site(site, (1, 2, 20, 10)), pixels[:, 3, 1:21, 2:12])


@VERSIONS
def test_a_chunk_that_was_never_written_is_the_fill_value(tmp_path, rewrite_array, version):
    pixels, site = rewrite_array(tmp_path, version, (1, 1, 24, 32), fill_value=7)
    level = tmp_path / "P1.zarr" / "A" / "01" / "0" / "0"
    name = "1/2/0/0" if (level / "1").exists() else "1.2.0.0" if version == "0.4" else "c/1/2/0/0"
    (level / name).unlink()
    read = read_site(replace(site, z="2"))
    np.testing.assert_array_equal(read[0], pixels[0, 2])
    assert (read[1] == 7).all()


@pytest.mark.parametrize("level", ["../../../../secret", "/etc", "s3://b/x", "a/../../b", "", "."])
def test_a_full_resolution_that_leaves_its_image_is_refused(tmp_path, write_zarr_plate, level):
    path = write_zarr_plate(tmp_path / "P1.zarr", "0.4", wells=("A/01",), sites=("0", "1"))
    edit(path / "A" / "01" / "1", "0.4", lambda ome: ome["multiscales"][0]["datasets"][0].update(path=level))
    (plate,) = listed(tmp_path)
    assert [site.site for site in plate.sites] == ["0"]
    assert [problem.problem for problem in plate.problems] == ["unreadable_file"]


def test_a_full_resolution_led_outside_by_a_link_is_refused(tmp_path, write_zarr_plate):
    path = write_zarr_plate(tmp_path / "screen" / "P1.zarr", "0.4", wells=("A/01",), sites=("0", "1"))
    level = path / "A" / "01" / "1" / "0"
    level.rename(tmp_path / "elsewhere")
    level.symlink_to(tmp_path / "elsewhere")
    (plate,) = listed(tmp_path / "screen")
    assert [site.site for site in plate.sites] == ["0"]
    assert [problem.problem for problem in plate.problems] == ["unreadable_file"]
