from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cytolake.storage import files as storage
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

FILES = {
    "index.csv": b"path,plate\n", "images/P1/B02/1.tif": b"1", "images/P1/B02/2.tif": b"22",
    "images/P1/B02/10.tif": b"10", "images/P1/.thumbs/1.tif": b"t", "images/P2/B02/1.tif": b"1",
    "P.zarr/zarr.json": b"{}", "P.zarr/B/2/0/zarr.json": b"{}", ".hidden/a.tif": b"",
}  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def screen(request, tmp_path):
    """The same screen on a disk and in a bucket, with a file next to it that must never be found."""
    if request.param == "local":
        root = tmp_path / "screen"
        for name, content in (FILES | {"../screen2/secret.tif": b"s"}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return SourceFolder(root)
    bucket = request.getfixturevalue("s3_bucket")
    files = storage.file_system(bucket)
    for name, content in FILES.items():
        files.pipe_file(f"{bucket}/data/screen/{name}", content)
    files.pipe_file(f"{bucket}/data/screen2/secret.tif", b"s")
    return SourceFolder(f"{bucket}/data/screen/")


def test_names_of_files_are_absolute_and_read_what_they_name(screen):
    for name, content in FILES.items():
        assert screen.find(name) == f"{screen.root}/{name}"
        assert storage.read_bytes(screen.find(name), 100) == content == screen.read_bytes(name)
        assert screen.relative(screen.find(name)) == name
    assert screen.name == "screen"
    assert screen.read_text("index.csv") == "path,plate\n"
    assert screen.find("images//P1/./B02\\1.tif") == screen.find("images/P1/B02/1.tif")


def test_a_walk_goes_through_everything_shown_in_natural_order(screen):
    assert list(screen.walk()) == [
        ("", ["P.zarr", "images"], ["index.csv"]),
        ("images", ["P1", "P2"], []),
        ("images/P1", ["B02"], []),
        ("images/P1/B02", [], ["1.tif", "2.tif", "10.tif"]),
        ("images/P2", ["B02"], []),
        ("images/P2/B02", [], ["1.tif"]),
    ]


def test_a_folder_taken_off_the_list_is_not_entered(screen):
    seen = []
    for folder, folders, _ in screen.walk():
        seen.append(folder)
        folders[:] = [name for name in folders if name != "images"]
    assert seen == [""]


def test_what_is_there_and_what_is_a_folder(screen):
    assert [
        screen.exists(name) for name in ("index.csv", "images", "P.zarr/B", "gone", "images/gone", "../screen2")
    ] == [*(True, True, True, False, False, False)]
    assert [screen.is_folder(name) for name in ("", "images/P1", "P.zarr/B/2", "index.csv", "gone", "..")] == [
        *(True, True, True, False, False, False)
    ]
    assert screen.list_folder("images") == [("P1", True), ("P2", True)]
    assert screen.list_folder("gone") == []


@pytest.mark.parametrize(
    "name",
    [
        "../screen2/secret.tif", "images/../../screen2/secret.tif", "/etc/passwd", "s3://other/x", "C:\\x", "..",
        "a/../..",
    ],
)  # fmt: skip
def test_a_name_that_leaves_the_folder_is_refused(screen, name):
    with pytest.raises(PathRefusedError) as caught:
        screen.find(name)
    assert caught.value.problem == "path_outside_screen"
    assert not screen.exists(name)


def test_no_name_at_all_and_a_name_that_is_not_there_differ(screen):
    for name, problem in (
        ("", "missing_path"),
        ("  ", "missing_path"),
        ("a\0b", "missing_path"),
        ("gone", "missing_file"),
    ):
        with pytest.raises(PathRefusedError) as caught:
            screen.find(name)
        assert caught.value.problem == problem


def test_paths_beside_the_folder_are_not_held(screen):
    assert screen.holds(screen.root)
    assert screen.holds(f"{screen.root}/images/P1")
    assert not screen.holds(f"{screen.root}2/secret.tif")
    assert not screen.holds(f"{screen.root}/../screen2/secret.tif")
    assert not screen.holds("s3://other/data")
    assert not screen.holds("/etc/passwd")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.lists(st.sampled_from(["..", ".", "", "images", "P1", "screen2", "secret.tif", "~", "C:", "s3:"])))
def test_whatever_is_found_lies_in_the_folder(screen, name):
    try:
        found = screen.find("/".join(name))
    except PathRefusedError:
        return
    assert screen.holds(found)
    assert found.startswith(f"{screen.root}/")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_not_held(tmp_path, name):
    assert not SourceFolder(tmp_path).holds(tmp_path / name)


def test_a_link_that_leads_outside_is_refused_and_one_inside_is_followed(tmp_path):
    root = tmp_path / "screen"
    (root / "images").mkdir(parents=True)
    (root / "images" / "1.tif").write_bytes(b"1")
    (tmp_path / "secret.tif").write_bytes(b"s")
    (root / "inside").symlink_to(root / "images")
    (root / "outside").symlink_to(tmp_path)
    (root / "out.tif").symlink_to(tmp_path / "secret.tif")
    folder = SourceFolder(root)
    assert folder.read_bytes("inside/1.tif") == b"1"
    for name in ("outside/secret.tif", "out.tif"):
        assert not folder.exists(name)
        with pytest.raises(PathRefusedError, match="path_outside_screen"):
            folder.read_bytes(name)
    assert "outside" not in [place for place, _, _ in folder.walk()]


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.tif").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folder = SourceFolder(tmp_path / "link")
    assert folder.root == os.path.realpath(tmp_path / "real")
    assert folder.read_bytes("a.tif") == b"a"


def test_a_screen_in_a_bucket_is_listed_with_few_requests(s3_bucket, monkeypatch):
    files = storage.file_system(s3_bucket)
    for i in range(60):
        files.pipe_file(f"{s3_bucket}/plates/P{i % 3}/well{i % 7}/{i}.tif", b"")
        files.pipe_file(f"{s3_bucket}/P.zarr/B/{i}/0/c/0/0", b"")
    listed = []
    for name in ("list_objects", "list_one_level"):
        ask = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda uri, ask=ask: listed.append(uri) or ask(uri))
    folder = SourceFolder(s3_bucket)
    for _ in range(2):
        assert sum(len(names) for _, _, names in folder.walk()) == 60
        assert all(folder.exists(f"plates/P{i % 3}/well{i % 7}/{i}.tif") for i in range(60))
        assert not folder.exists("plates/P0/well0/none.tif")
    assert listed == [s3_bucket, f"{s3_bucket}/plates"]


def test_keys_that_no_path_can_name_are_left_out(s3_bucket):
    files = storage.file_system(s3_bucket)
    for key in ("d/a.tif", "d//b.tif", "d/../c.tif", "d/./d.tif", "d/empty/"):
        files.call_s3("put_object", Bucket=s3_bucket[len("s3://") :], Key=key, Body=b"")
    folder = SourceFolder(s3_bucket)
    assert list(folder.walk()) == [("", ["d"], []), ("d", ["empty"], ["a.tif"]), ("d/empty", [], [])]


def test_a_bucket_that_is_not_there_is_an_error_and_not_an_empty_screen(s3_server):
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        SourceFolder("s3://no-such-bucket-anywhere/screen").list_folder()
