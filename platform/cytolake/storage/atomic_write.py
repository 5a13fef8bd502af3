"""Writes files and folders of a disk whole or not at all: under a hidden name first, then renamed.

A reader sees the old content or the new, never a part, also where the writing process is killed. Of two processes that
write one path at once, both succeed and one result stays. Nothing is flushed to the disk (fsync): after a power failure
the last files written may be cut, and what is read back checks that itself (checksums of packs and indices, ids of
checkpoints).
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A file to write, next to `path`, that takes its place when the block ends; an error in the block removes it.

    The folder is made where it is missing. The file gets the permissions of any new file, whatever library wrote it:
    safetensors makes its files readable by their owner alone.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.part")
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        yield part
        if part.stat().st_mode != mode:
            part.chmod(mode)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, line ends as they are."""
    with atomic_file(path) as part:
        part.write_bytes(text.encode("utf-8"))


@contextmanager
def atomic_folder(path: str | Path, building: Path | None = None) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends; an error in the block removes it.

    Where `path` is there by then, another process made the same: that one stays.

    Args:
        path: May not exist yet. Its ending is kept while it is built: stores recognise formats by it.
        building: Folder to fill, on the same disk; by default a hidden one next to `path`.
    """
    target = Path(path)
    part = building or target.with_name(f".{target.stem[:100]}.{uuid.uuid4().hex}.part{target.suffix}")
    try:
        part.mkdir(parents=True)
        yield part
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
