"""Reads files on a local disk and objects in an S3 bucket.

A path is a local path or `s3://bucket/key`; nothing else. Endpoint, region and credentials of S3 are those of the usual
environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_PROFILE, ...); where there are no credentials, or with
AWS_NO_SIGN_REQUEST=true, requests go out unsigned, as public buckets want them.

Every failure comes back as an OSError whose text names the path: FileNotFoundError (no such file, object or bucket),
PermissionError, or `StorageError` for the rest.

Disk and bucket are in one file because each function is the same promise for both.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
ATTEMPTS_MAX = 3  # of one request; a storage that refuses connections is reported after seconds
WHOLE_OBJECT_BYTES_MAX = 16 * 2**20
"""Objects up to this size are fetched in one request; larger ones are read in blocks, as far as they are needed."""
BLOCK_BYTES = 2**20

_TOGETHER = 1024  # objects requested at once; s3fs has 128 of these requests in flight

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_TRUE = ("1", "true", "yes", "on")


class StorageError(OSError):
    """A read that failed for another reason than a missing path or permission."""


class UnreachableError(StorageError):
    """The storage does not answer, is overloaded, or the credentials expired: an error of all files, not of one."""


_OF_THE_MACHINE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED}
)
_BUSY = frozenset(
    {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
)  # s3fs: SlowDown, ServiceUnavailable, InternalError


def is_of_storage(error: OSError) -> bool:
    """Whether a read failed for a reason that passes and is no fault of the file, such as a network that is down."""
    return isinstance(error, UnreachableError) or error.errno in _OF_THE_MACHINE


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Size in bytes of a file or object, and the object's etag without quotes; empty for a local file."""

    size: int
    etag: str = ""


def is_uri(path: str | Path) -> bool:
    """Whether a path has a scheme, such as `s3://`."""
    return _SCHEME.match(str(path)) is not None


def file_system(path: str | Path) -> Any:
    """The fsspec file system that holds a path: one for local paths, one for each set of S3 settings.

    Raises:
        StorageError: A URI of another scheme than s3, or one without a bucket.
    """
    if not is_uri(path):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem()
    bucket_and_key(str(path))
    return _s3_file_system(os.getpid(), *_s3_settings())


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; the key is empty for a bucket.

    Raises:
        StorageError: Another scheme, or no bucket.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme.lower() != "s3" or not bucket:
        raise StorageError(
            f"{uri}: found {'no bucket' if scheme.lower() == 's3' else f'scheme {scheme}'}, expected a local path or "
            "s3://bucket/key. Correct the path, or copy the files there."
        )
    return bucket, key.strip("/")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """Every byte of a file or object.

    Raises:
        FileNotFoundError, PermissionError: As they say.
        StorageError: More than `limit` bytes, or the storage did not answer.
    """
    return read_part(path, 0, None, limit)


def read_part(path: str | Path, start: int, stop: int | None, limit: int) -> bytes:
    """Bytes from `start` (below 0: counted from the end) up to `stop` or the end, in one request.

    Raises:
        FileNotFoundError, PermissionError, StorageError: As for `read_bytes`.
    """
    if not is_uri(path):
        with open(path, "rb") as file:  # noqa: PTH123 - called for each of many files
            if start < 0:
                file.seek(max(start, -os.fstat(file.fileno()).st_size), os.SEEK_END)
            elif start:
                file.seek(start)
            content = file.read(limit + 1 if stop is None else min(limit + 1, stop - start))
    else:
        # a request for more than there is gives what there is
        end = start + limit + 1 if stop is None else min(stop, start + limit + 1)
        with _named_errors(path):
            try:
                content = file_system(path).cat_file(str(path), start=start, end=None if start < 0 else end)
            except OSError as error:
                if not _is_past_the_end(error):
                    raise
                content = b""  # an empty object has no range to request
    return _within(path, content, limit)


def read_each(paths: Sequence[str], limit: int) -> list[bytes | OSError]:
    """Every byte of each file or object, in order, or the error that `read_bytes` would raise.

    Objects are requested concurrently: one at a time, the metadata of a plate of 3,456 images take minutes.
    """
    found: list[bytes | OSError] = []
    if paths and is_uri(paths[0]):
        for first in range(0, len(paths), _TOGETHER):
            names = list(paths[first : first + _TOGETHER])
            n = len(names)
            try:
                with _named_errors(names[0]):
                    got = file_system(names[0]).cat_ranges(names, [0] * n, [limit + 1] * n, on_error="return")
            except OSError as error:
                got = [error] * n
            found += [_read_or_error(name, content, limit) for name, content in zip(names, got, strict=True)]
        return found
    for path in paths:
        try:
            found.append(read_bytes(path, limit))
        except OSError as error:
            found.append(error)
    return found


def _read_or_error(path: str, content: bytes | Exception, limit: int) -> bytes | OSError:
    try:
        if isinstance(content, Exception):
            if _is_past_the_end(content):
                return b""
            with _named_errors(path):
                raise content
        return _within(path, content, limit)
    except OSError as error:
        return error


def _within(path: str | Path, content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise StorageError(f"{path}: found more than {limit} bytes, expected at most that. Is it the right file?")
    return content


def _is_past_the_end(error: Exception) -> bool:
    """Whether S3 refused a range of bytes since the object has none there."""
    return _s3_code(error) in ("InvalidRange", "416")


def _s3_code(error: BaseException) -> str:
    """S3's own code of what went wrong; empty where it said none."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return ""


def open_file(path: str | Path) -> BinaryIO:
    """A file or object to read from and seek in: a local file itself, a small object whole, a large one in blocks.

    Raises:
        FileNotFoundError, PermissionError, StorageError: As for `read_bytes`.
    """
    if not is_uri(path):
        return open(path, "rb")  # noqa: PTH123 - the caller closes it; called for each of many files
    with _named_errors(path):
        file_system_ = file_system(path)
        size = int(file_system_.info(str(path))["size"])
        if size <= WHOLE_OBJECT_BYTES_MAX:
            # a byte range past the end of an empty object is an error
            return io.BytesIO(file_system_.cat_file(str(path)) if size else b"")
        # BLOCK_BYTES ahead of each read: strips of a TIFF lie in order
        file = file_system_.open(str(path), "rb", block_size=BLOCK_BYTES, cache_type="readahead", size=size)
        return cast(BinaryIO, io.BufferedReader(_ReportedReads(file, str(path)), BLOCK_BYTES))


def stored_file(path: str | Path) -> StoredFile:
    """Size and etag of one file or object.

    Raises:
        FileNotFoundError, PermissionError, StorageError: As for `read_bytes`.
    """
    if not is_uri(path):
        return StoredFile(os.stat(path).st_size)  # noqa: PTH116 - called for every file of a screen
    with _named_errors(path):
        return _as_stored(file_system(path).info(str(path)))


def list_objects(uri: str) -> dict[str, StoredFile]:
    """Every object below `uri/`, by its key relative to that: one listing of up to 1,000 objects for each request.

    Raises:
        FileNotFoundError, PermissionError, StorageError: As for `read_bytes`. No object below a prefix is no error.
    """
    prefix = "s3://" + "/".join(bucket_and_key(uri)).strip("/") + "/"
    return {name[len(prefix) :]: file for name, file in list_beginning_with(prefix).items() if len(name) > len(prefix)}


def list_beginning_with(uri: str) -> dict[str, StoredFile]:
    """Every object whose URI begins with this one, by its URI. Otherwise as `list_objects`."""
    bucket_and_key(uri)
    folder, _, beginning = uri.partition("://")[2].rpartition("/")
    with _named_errors(uri):
        found = file_system(uri).find(folder + "/", prefix=beginning, detail=True)
    # a prefix of s3fs that is itself an object comes along
    named = ((f"s3://{name}", entry) for name, entry in found.items() if entry["type"] == "file")
    return {name: _as_stored(entry) for name, entry in named if name.startswith(uri)}


def list_one_level(uri: str) -> dict[str, bool]:
    """Names directly below `uri/`, each with whether it is a prefix ("folder").

    Raises:
        FileNotFoundError, PermissionError, StorageError: As for `read_bytes`. No object below a prefix is no error.
    """
    bucket, key = bucket_and_key(uri)
    prefix = f"{bucket}/{key}/" if key else f"{bucket}/"
    with _named_errors(uri):
        try:
            entries = file_system(uri).ls(prefix, detail=True)
        except FileNotFoundError as error:
            if _is_missing_bucket(error):
                raise
            return {}
    names: dict[str, bool] = {}
    for entry in entries:
        name = entry["name"][len(prefix) :].rstrip("/")
        if name and "/" not in name:
            names[name] = names.get(name, False) or entry["type"] == "directory"
    return names


def delta_options(uri: str | Path) -> dict[str, str]:
    """`storage_options` with which delta-rs reads and writes a table at this path; empty for a local one.

    Holds no secret: delta-rs finds credentials in the environment as `file_system` does.
    """
    if not is_uri(uri):
        return {}
    bucket_and_key(str(uri))
    endpoint, region, is_anonymous = _s3_settings()
    options = {"AWS_REGION": region or "us-east-1", "conditional_put": "etag"}  # two writers: one commit wins
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        if endpoint.startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
    if is_anonymous:
        options["AWS_SKIP_SIGNATURE"] = "true"
    return options


def _as_stored(entry: dict[str, Any]) -> StoredFile:
    return StoredFile(int(entry["size"] or 0), str(entry.get("ETag") or "").strip('"'))


def _s3_settings() -> tuple[str, str, bool]:
    """Endpoint and region (empty: the default), and whether requests go out unsigned."""
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or ""
    if environment.get("AWS_NO_SIGN_REQUEST", "").lower() in _TRUE:
        return endpoint, region, True
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return endpoint, region, False
    return endpoint, region, not _has_credentials(environment.get("AWS_PROFILE", ""))


@lru_cache(maxsize=8)
def _has_credentials(profile: str) -> bool:
    """Whether a profile, a role or the machine has credentials; a request to the machine takes up to 2 s, once."""
    import botocore.session  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    try:
        return botocore.session.Session(profile=profile or None).get_credentials() is not None
    except BotoCoreError:
        return False


@lru_cache(maxsize=8)
def _s3_file_system(process: int, endpoint: str, region: str, is_anonymous: bool) -> Any:
    """fsspec keeps one file system for each thread, and a new one costs 0.2 s; this one is kept for the process."""
    import s3fs

    files = s3fs.S3FileSystem(
        anon=is_anonymous,
        endpoint_url=endpoint or None,
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"max_attempts": ATTEMPTS_MAX, "mode": "standard"},
        },
        use_listings_cache=False,  # callers cache listings themselves, so that a new ingest sees new objects
        skip_instance_cache=True,
    )
    files.retries = 1  # botocore tries again by itself, with longer and longer pauses; both would multiply
    return files


class _ReportedReads(io.RawIOBase):
    """A file of fsspec whose read errors become those of `open_file`."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _named_errors(self._path):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of fsspec, s3fs and botocore into an OSError that names the path and what to do."""
    from aiohttp import ClientPayloadError
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
    )

    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such {'bucket' if _is_missing_bucket(error) else 'object'}") from error
    except (PermissionError, NoCredentialsError) as error:
        if _s3_code(error) == "ExpiredToken":
            raise UnreachableError(f"{path}: the credentials ran out ({_one_line(error)}). Renew them.") from error
        raise PermissionError(
            f"{path}: reading was refused ({_one_line(error)}). Check the AWS_* credentials and the bucket's policy."
        ) from error
    except (ConnectionError, HTTPClientError, TimeoutError, ClientPayloadError) as error:
        raise UnreachableError(
            f"{path}: the storage does not answer ({_one_line(error)}). Check the network and AWS_ENDPOINT_URL."
        ) from error
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        is_busy = isinstance(error, OSError) and error.errno in _BUSY
        raise (UnreachableError if is_busy else StorageError)(f"{path}: {_one_line(error)}") from error


def _is_missing_bucket(error: FileNotFoundError) -> bool:
    return "bucket does not exist" in str(error)  # S3's own words for NoSuchBucket


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
