from __future__ import annotations

import resource
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolake.storage import files as storage
from cytolake.storage.files import StorageError, UnreachableError

CONTENT = b"0123456789"


@pytest.fixture
def put(s3_bucket):
    """Writes objects of the test's bucket; gives the bucket's URI."""

    def write(objects):
        files = storage.file_system(s3_bucket)
        for key, content in objects.items():
            files.pipe_file(f"{s3_bucket}/{key}", content)
        return s3_bucket

    return write


@pytest.mark.parametrize("path", ["gs://bucket/key", "https://host/key", "s3:///key", "s3://", "file:///etc/passwd"])
def test_only_s3_uris_and_local_paths_are_read(path):
    with pytest.raises(StorageError, match="expected a local path or s3://bucket/key"):
        storage.file_system(path)


def test_an_object_reads_as_a_file_of_the_same_bytes(tmp_path, put):
    (tmp_path / "a").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    bucket = put({"a": CONTENT, "empty": b""})
    for place in (str(tmp_path), bucket):
        assert storage.read_bytes(f"{place}/a", 10) == CONTENT
        assert storage.read_bytes(f"{place}/empty", 10) == b""
        assert storage.read_part(f"{place}/a", 2, 5, 10) == b"234"
        assert storage.read_part(f"{place}/a", 7, None, 10) == b"789"
        assert storage.read_part(f"{place}/a", -3, None, 10) == b"789"
        assert storage.read_part(f"{place}/a", -30, None, 10) == CONTENT
        assert storage.stored_file(f"{place}/a").size == 10
        with storage.open_file(f"{place}/a") as file:
            assert (file.read(3), file.seek(8), file.read()) == (b"012", 8, b"89")


def test_more_bytes_than_allowed_are_an_error_that_names_the_file(tmp_path, put):
    (tmp_path / "a").write_bytes(CONTENT)
    for place in (str(tmp_path), put({"a": CONTENT})):
        with pytest.raises(StorageError, match=r"/a: found more than 9 bytes"):
            storage.read_bytes(f"{place}/a", 9)


def test_a_large_object_is_read_in_blocks_and_only_where_it_is_wanted(put, monkeypatch):
    monkeypatch.setattr(storage, "WHOLE_OBJECT_BYTES_MAX", 100)
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1000)
    content = np.random.default_rng(0).bytes(50_000)
    bucket = put({"a": content})
    requests = []
    files = storage.file_system(bucket)
    fetch = files.cat_file
    monkeypatch.setattr(files, "cat_file", lambda *args, **kwargs: requests.append(args) or fetch(*args, **kwargs))
    with storage.open_file(f"{bucket}/a") as file:
        for offset in (0, 40_000, 123):
            file.seek(offset)
            assert file.read(500) == content[offset : offset + 500]
        file.seek(0)
        assert file.read() == content
    assert not requests  # never the whole object in one request


def test_each_of_many_paths_gives_its_bytes_or_its_error(tmp_path, put):
    (tmp_path / "a").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    for place in (str(tmp_path), put({"a": CONTENT, "empty": b""})):
        first, empty, missing = storage.read_each([f"{place}/{name}" for name in ("a", "empty", "gone")], 10)
        assert (first, empty) == (CONTENT, b"")
        assert isinstance(missing, FileNotFoundError)
        assert f"{place}/gone" in str(missing)
        (large,) = storage.read_each([f"{place}/a"], 9)
        assert isinstance(large, StorageError)


def test_what_is_not_there_is_named_by_its_path(put):
    bucket = put({"a": CONTENT})
    for read in (
        lambda path: storage.read_bytes(path, 10),
        storage.stored_file,
        lambda path: storage.open_file(path).read(),
    ):
        with pytest.raises(FileNotFoundError, match=f"{bucket}/gone: no such object"):
            read(f"{bucket}/gone")
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        storage.list_objects("s3://no-such-bucket-anywhere/x")
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        storage.list_one_level("s3://no-such-bucket-anywhere/x")


def test_listings_hold_what_is_below_and_nothing_beside_it(put):
    bucket = put({"a/1": b"x", "a/b/2": b"xy", "a/b/c/3": b"", "ab/4": b"x", "a.txt": b"x"})
    assert {name: file.size for name, file in storage.list_objects(f"{bucket}/a").items()} == {
        **{"1": 1, "b/2": 2, "b/c/3": 0}
    }
    assert storage.list_one_level(f"{bucket}/a") == {"1": False, "b": True}
    assert storage.list_one_level(bucket) == {"a": True, "ab": True, "a.txt": False}
    assert sorted(storage.list_beginning_with(f"{bucket}/a/b")) == [f"{bucket}/a/b/2", f"{bucket}/a/b/c/3"]
    assert sorted(storage.list_beginning_with(f"{bucket}/a")) == [
        f"{bucket}/{key}" for key in ("a.txt", "a/1", "a/b/2", "a/b/c/3", "ab/4")
    ]
    assert storage.list_objects(f"{bucket}/nothing") == storage.list_one_level(f"{bucket}/nothing") == {}


@pytest.mark.slow  # the server takes 30 s to store them
def test_a_thousand_objects_and_more_are_all_listed(put):
    bucket = put({f"many/{i:04d}": b"" for i in range(1003)})
    assert len(storage.list_objects(f"{bucket}/many")) == len(storage.list_one_level(f"{bucket}/many")) == 1003


def test_a_listing_sees_objects_written_after_the_last(put):
    bucket = put({"a/1": b""})
    assert list(storage.list_objects(f"{bucket}/a")) == ["1"]
    put({"a/2": b""})
    assert list(storage.list_objects(f"{bucket}/a")) == ["1", "2"]


def test_the_etag_tells_contents_of_one_size_apart(put):
    bucket = put({"a": b"abc", "b": b"abd", "c": b"abc"})
    etags = [storage.stored_file(f"{bucket}/{name}").etag for name in "abc"]
    assert etags[0] == etags[2] != etags[1]
    assert [file.etag for file in storage.list_beginning_with(f"{bucket}/").values()] == etags


@pytest.mark.slow
def test_a_storage_that_refuses_connections_is_reported_within_seconds(s3_server, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"does not answer.*AWS_ENDPOINT_URL"):
            storage.read_bytes("s3://bucket/key", 10)
        (each,) = storage.read_each(["s3://bucket/key"], 10)
        assert isinstance(each, StorageError)
    assert time.monotonic() - start < 60  # seconds in fact; the default of botocore waits minutes


@pytest.fixture
def answers(s3_server, monkeypatch):
    """An endpoint that gives every request one answer; counts them."""
    counted = []

    def serve(status, code):
        listener = socket.create_server(("127.0.0.1", 0))
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        lines = (
            f"HTTP/1.1 {status}",
            "Content-Type: application/xml",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        head = "\r\n".join((*lines, "", ""))

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    request = connection.recv(65536)
                    counted.append(request.partition(b"\r\n")[0])
                    connection.sendall(head.encode() + (b"" if request.startswith(b"HEAD") else body))

        threading.Thread(target=accept, daemon=True).start()
        open_listeners.append(listener)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        return counted

    open_listeners: list[socket.socket] = []
    yield serve
    for listener in open_listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_bucket_that_may_not_be_read_is_reported_as_such(answers):
    answers("403 Forbidden", "AccessDenied")
    for read in (lambda: storage.read_bytes("s3://b/key", 10), lambda: storage.list_objects("s3://b/key")):
        with pytest.raises(PermissionError, match=r"s3://b/key/?: reading was refused.*AWS_"):
            read()
    (each,) = storage.read_each(["s3://b/key"], 10)
    assert isinstance(each, PermissionError)


def test_a_storage_that_fails_is_tried_a_few_times_and_then_reported(answers):
    requests = answers("503 Slow Down", "SlowDown")
    with pytest.raises(UnreachableError, match="s3://b/key"):
        storage.read_bytes("s3://b/key", 10)
    assert 2 <= len(requests) <= storage.ATTEMPTS_MAX * 2


@pytest.mark.parametrize(
    ("status", "code", "concerns_all"),
    [
        ("400 Bad Request", "ExpiredToken", True),
        ("403 Forbidden", "AccessDenied", False),
        ("404 No", "NoSuchKey", False),
    ],
)
def test_an_error_of_the_storage_differs_from_one_of_a_file(answers, status, code, concerns_all):
    answers(status, code)
    with pytest.raises(OSError, match="s3://b/key") as caught:
        storage.read_bytes("s3://b/key", 10)
    assert storage.is_of_storage(caught.value) == concerns_all


def test_a_machine_out_of_open_files_says_nothing_about_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"whole")
    held = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 8, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            held.extend(storage.open_file(tmp_path / "a") for _ in range(64))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in held:
            file.close()
    assert storage.is_of_storage(caught.value)
    assert not storage.is_of_storage(FileNotFoundError(2, "No such file"))


def test_requests_are_signed_where_there_are_credentials_and_not_otherwise(s3_server, monkeypatch, tmp_path):
    assert "AWS_SKIP_SIGNATURE" not in storage.delta_options("s3://b/t")
    assert not storage.file_system("s3://b/t").anon
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
    assert storage.delta_options("s3://b/t")["AWS_SKIP_SIGNATURE"] == "true"
    assert storage.file_system("s3://b/t").anon
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert storage.file_system("s3://b/t").anon


def test_delta_tables_are_written_to_where_the_settings_lead_and_hold_no_secret(s3_server, put):
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    assert storage.delta_options("/a/b") == {}
    uri = f"{put({})}/table"
    options = storage.delta_options(uri)
    assert options["AWS_ENDPOINT_URL"] == s3_server
    assert not any("SECRET" in name or "KEY" in name for name in options)
    for i in range(2):
        write_deltalake(uri, pa.table({"a": [i]}), mode="append", storage_options=options)
    assert sorted(DeltaTable(uri, storage_options=options).to_pyarrow_table()["a"].to_pylist()) == [0, 1]


@given(st.text(max_size=30))
def test_a_uri_splits_into_bucket_and_key_or_is_refused(text):
    try:
        bucket, key = storage.bucket_and_key(f"s3://{text}")
    except StorageError:
        assert not text.partition("/")[0]
    else:
        assert "/" not in bucket
        assert text.rstrip("/").startswith(f"{bucket}/".rstrip("/"))
        assert key == text.partition("/")[2].strip("/")
