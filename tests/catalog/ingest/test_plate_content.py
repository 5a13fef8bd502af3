from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from cytolake.catalog.ingest.plate_content import content_hash
from cytolake.screens.plate import Plate, SiteImage
from cytolake.storage import files as storage
from cytolake.storage.files import StorageError

FILES = {
    "P1/B02/1.tif": b"dna",
    "P1/B02/2.tif": b"dna2",
    "P1/B03/1.tif": b"d",
    "P10/B02/1.tif": b"other plate",
    "f.npy": b"f",
}


def plate_at(root, **fields):
    """A plate of two sites; the first has two planes."""
    site = SiteImage(screen="s", plate="P1", well="B02", site="1", channels=("DNA",), reader="files", image_paths=())
    sites = (
        replace(site, image_paths=(f"{root}/P1/B02/1.tif", f"{root}/P1/B02/2.tif"), z="max", planes=(2,), **fields),
        replace(site, well="B03", image_paths=(f"{root}/P1/B03/1.tif",)),
    )
    return Plate(
        screen="s", plate="P1", batch="P1", source=str(root), reader="files", channels=("DNA",), sites=sites
    )  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """Writes the files of a screen somewhere; gives (root, function that writes one file)."""
    bucket = request.getfixturevalue("s3_bucket") if request.param == "s3" else ""

    def write(folder):
        root = f"{bucket}/{folder}" if bucket else str(tmp_path / folder)

        def put(name, content):
            if bucket:
                storage.file_system(bucket).pipe_file(f"{root}/{name}", content)
            else:
                (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / folder / name).write_bytes(content)

        for name, content in FILES.items():
            put(name, content)
        return root, put

    return write


def test_a_copy_of_a_plate_elsewhere_has_the_same_hash(place):
    (first, _), (second, _) = place("a"), place("deep/er")
    assert content_hash(plate_at(first)) == content_hash(plate_at(second))


def test_every_file_of_the_plate_counts_and_no_other(place):
    root, put = place("a")
    function = {"illumination_paths": (f"{root}/f.npy",)}
    before = content_hash(plate_at(root, **function))
    put("P10/B02/1.tif", b"changed")
    put("P1/B02/99.tif", b"of no site")
    assert content_hash(plate_at(root, **function)) == before
    seen = {before}
    for name in ("P1/B02/1.tif", "P1/B02/2.tif", "P1/B03/1.tif", "f.npy"):
        put(name, b"longer than before")
        seen.add(content_hash(plate_at(root, **function)))
    assert len(seen) == 5


def test_planes_and_illumination_are_part_of_the_content(place):
    root, _ = place("a")
    plate = plate_at(root)
    flat = replace(plate, sites=(replace(plate.sites[0], planes=(1, 1), channels=("DNA", "ER")), plate.sites[1]))
    lit = plate_at(root, illumination_paths=(f"{root}/f.npy",))
    assert len({content_hash(one) for one in (plate, flat, lit)}) == 3
    assert content_hash(plate_at(root, illumination_paths=("",))) == content_hash(plate)


def test_a_file_that_is_gone_changes_the_hash_and_raises_nothing(place):
    root, _ = place("a")
    plate = plate_at(root)
    before = content_hash(plate)
    lost = replace(plate.sites[1], image_paths=(f"{root}/P1/B03/gone.tif",))
    assert content_hash(replace(plate, sites=(plate.sites[0], lost))) != before


def test_an_object_with_other_content_of_the_same_size_changes_the_hash(s3_bucket):
    files = storage.file_system(s3_bucket)
    for name, content in FILES.items():
        files.pipe_file(f"{s3_bucket}/a/{name}", content)
    before = content_hash(plate_at(f"{s3_bucket}/a"))
    files.pipe_file(f"{s3_bucket}/a/P1/B03/1.tif", b"D")
    assert content_hash(plate_at(f"{s3_bucket}/a")) != before


def test_an_image_group_is_all_its_files_but_what_is_added_later(place):
    root, put = place("a")
    for name in ("0/zarr.json", "0/c/0/0", "zarr.json"):
        put(f"P.zarr/B/02/0/{name}", b"x")
    put("P.zarr/B/02/01/zarr.json", b"another image whose name begins the same")
    site = SiteImage(
        screen="s", plate="P", well="B02", site="0", channels=("DNA",), reader="ome-zarr",
        image_paths=(f"{root}/P.zarr/B/02/0",),
    )  # fmt: skip
    plate = replace(plate_at(root), reader="ome-zarr", source=f"{root}/P.zarr", sites=(site,))
    before = content_hash(plate)
    put("P.zarr/B/02/0/labels/nuclei/zarr.json", b"x")
    put("P.zarr/B/02/01/c/0", b"x")
    assert content_hash(plate) == before
    put("P.zarr/B/02/0/0/c/0/1", b"x")
    assert content_hash(plate) != before


def test_a_plate_in_a_bucket_takes_two_listings_whatever_its_size(s3_bucket, monkeypatch):
    files = storage.file_system(s3_bucket)
    for name, content in FILES.items():
        files.pipe_file(f"{s3_bucket}/a/{name}", content)
    requests = []
    find, info = files.find, files.info
    monkeypatch.setattr(files, "find", lambda *args, **kwargs: requests.append(args) or find(*args, **kwargs))
    monkeypatch.setattr(files, "info", lambda *args, **kwargs: requests.append(args) or info(*args, **kwargs))
    content_hash(plate_at(f"{s3_bucket}/a", illumination_paths=(f"{s3_bucket}/a/f.npy",)))
    assert len(requests) == 2


@pytest.mark.slow
def test_a_bucket_that_does_not_answer_is_an_error_and_no_other_hash(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="does not answer"):
        content_hash(plate_at("s3://bucket/a"))


def test_the_default_batch_counts_as_it_did_when_it_was_the_plates_name(tmp_path):
    plate = plate_at(tmp_path)
    assert content_hash(replace(plate, batch="s/P1")) == content_hash(plate)
    named = replace(plate, batch="week 1", wells=({"well": "B02", "batch": "week 1"},))
    assert content_hash(named) != content_hash(plate)


def test_a_plate_without_planes_or_functions_keeps_the_hash_that_older_catalogs_hold(tmp_path):
    """As computed by cytolake 0.1 for the same files: a catalog from then must not refuse its plates as changed."""
    for name in ("P1/B02/1.tif", "P1/B03/1.tif"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"12345")
    plate = plate_at(tmp_path)
    first = replace(plate.sites[0], z="", planes=(), image_paths=plate.sites[0].image_paths[:1])
    plate = replace(plate, sites=(first, plate.sites[1]), wells=({"well": "B02", "compound": "a"},))
    assert content_hash(plate) == "d1fa0707f2d6955cbb7baf6e390a3e8f"
    moved = os.path.join(tmp_path, "moved")  # noqa: PTH118
    shutil.copytree(tmp_path / "P1", f"{moved}/P1")
    sites = tuple(
        replace(s, image_paths=tuple(p.replace(str(tmp_path), moved) for p in s.image_paths)) for s in plate.sites
    )
    assert content_hash(replace(plate, source=moved, sites=sites)) == "d1fa0707f2d6955cbb7baf6e390a3e8f"
