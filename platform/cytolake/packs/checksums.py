"""Size and SHA-256 of every file of a pack when it was written, in `checksums.json`.

SHA-256 rather than a CRC: `sha256sum` checks a file by hand, and with the processor's own instructions it costs 0.55 s
a GB (blake2b 1.1 s), a tenth of what building a pack takes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cytolake.packs.shards import REMEDY, PackError, WrittenFile

CHECKSUMS_FILE = "checksums.json"
Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the amount done, and the total."""


def write_checksums(folder: Path, known: Iterable[WrittenFile] = ()) -> None:
    """Write `checksums.json` of a pack's folder.

    Args:
        known: Files whose checksum was taken as they were written; the rest are read.
    """
    files = {written.file: written for written in known}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != CHECKSUMS_FILE and name not in files:
            files[name] = WrittenFile(file=name, n_bytes=path.stat().st_size, sha256=_sha256(path))
    described = {name: {"bytes": files[name].n_bytes, "sha256": files[name].sha256} for name in sorted(files)}
    (folder / CHECKSUMS_FILE).write_text(json.dumps({"files": described}, indent=1) + "\n", encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, WrittenFile]:
    """Path relative to the folder to size and checksum of each file; empty without a `checksums.json`.

    Raises:
        PackError: The file cannot be read as checksums.
    """
    path = folder / CHECKSUMS_FILE
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {
            name: WrittenFile(file=name, n_bytes=int(was["bytes"]), sha256=str(was["sha256"]))
            for name, was in files.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackError(f"{path}: these are no checksums of a pack ({error!r}). {REMEDY}") from None


def check_files(folder: Path, files: dict[str, WrittenFile], progress: Progress | None = None) -> dict[str, str]:
    """Read every file and compare it with its recorded size and checksum.

    Returns:
        Path of each changed file to a description of the difference, ordered by path.
    """
    wrong = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:  # hashing releases Python's global lock
        ordered = [files[name] for name in sorted(files)]
        for done, found in enumerate(threads.map(lambda was: _compare(folder, was), ordered), 1):
            if found:
                wrong[ordered[done - 1].file] = found
            if progress is not None:
                progress("files checked", done, len(ordered))
    return wrong


def _compare(folder: Path, was: WrittenFile) -> str:
    path = folder / was.file
    try:
        n_bytes = path.stat().st_size
        if n_bytes != was.n_bytes:
            return f"has {n_bytes} bytes, expected {was.n_bytes}"
        found = _sha256(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == was.sha256 else f"has SHA-256 {found[:12]}..., expected {was.sha256[:12]}..."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
