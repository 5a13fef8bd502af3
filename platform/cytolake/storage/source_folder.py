"""The folder of a screen, on a disk or in an S3 bucket. Paths found in its files must stay below it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cytolake.storage import files as storage
from cytolake.storage.natural_order import natural_order

TEXT_BYTES_MAX = 2**30
"""An index of a million images is 200 MB."""

_SCHEME_OR_DRIVE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://|[A-Za-z]:[\\/]")


class PathRefusedError(ValueError):
    """A path that must not or cannot be read; the fields of a `Problem`."""

    def __init__(self, problem: str, found: str, expected: str, next_step: str) -> None:
        self.problem, self.found, self.expected, self.next_step = problem, found, expected, next_step
        super().__init__(f"{problem}: found {found}, expected {expected}. {next_step}")


@dataclass(frozen=True, slots=True)
class _Entry:
    is_folder: bool
    is_link: bool = False


class SourceFolder:
    """A screen's folder. Lists each folder below it once, so that an index of many files costs no look-up for each.

    In a bucket a whole folder directly below the root (a plate, or all images) is listed at once, since every request
    costs a tenth of a second; except one named `.zarr`, whose chunks nobody needs to know by name.
    """

    root: str
    """Absolute path without links, or `s3://bucket/folder`."""
    is_remote: bool

    def __init__(self, root: str | Path) -> None:
        self.is_remote = storage.is_uri(root)
        if self.is_remote:
            self.root = "s3://" + "/".join(storage.bucket_and_key(str(root))).rstrip("/")
        else:
            self.root = os.path.realpath(root)
        self._entries: dict[str, dict[str, _Entry]] = {}  # relative folder -> name -> what it is

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.rstrip("/").rpartition("/")[2]

    def find(self, relative: str) -> str:
        """Absolute path or URI of a file or folder that is named relative to this folder and is there.

        Raises:
            PathRefusedError: Empty, absolute, with `..` or a scheme, led outside by a link, or not there.
            OSError: A bucket that cannot be listed, as `storage.files` reports it.
        """
        parts = self._parts(relative)
        if not parts:
            raise _outside(relative)
        entry = self._list("/".join(parts[:-1])).get(parts[-1])
        if entry is None:
            raise PathRefusedError(
                "missing_file",
                "no such object in the bucket" if self.is_remote else "no such file on disk",
                "the file that is named",
                "Copy the file into the screen's folder, or remove the row that names it.",
            )
        path = "/".join((self.root, *parts)) if self.is_remote else os.path.join(self.root, *parts)  # noqa: PTH118
        if entry.is_link and not self.holds(path):
            raise _outside(f"{relative}, a link to another folder")
        return path

    def exists(self, relative: str) -> bool:
        """Whether `find` finds it: a file or folder below this folder, not led outside by a link."""
        try:
            self.find(relative)
        except PathRefusedError:
            return False
        return True

    def is_folder(self, relative: str) -> bool:
        """Whether a name below this folder is a folder; the empty name is this folder itself."""
        try:
            parts = self._parts(relative) if relative else []
            if not parts:
                return True
            self.find(relative)
        except PathRefusedError:
            return False
        return self._list("/".join(parts[:-1]))[parts[-1]].is_folder

    def read_bytes(self, relative: str, limit: int = TEXT_BYTES_MAX) -> bytes:
        """Content of a file below this folder.

        Raises:
            PathRefusedError: As for `find`.
            OSError: It cannot be read, or has more bytes than `limit`.
        """
        return storage.read_bytes(self.find(relative), limit)

    def read_text(self, relative: str) -> str:
        """Content of a UTF-8 file below this folder, without a byte order mark; line ends as they are.

        Raises:
            PathRefusedError: As for `find`.
            OSError: It cannot be read, or has more than `TEXT_BYTES_MAX` bytes.
            UnicodeDecodeError: It is not UTF-8.
        """
        return self.read_bytes(relative, TEXT_BYTES_MAX).decode("utf-8-sig")

    def list_folder(self, relative: str = "") -> list[tuple[str, bool]]:
        """Names in a folder in natural order, each with whether it is a folder; hidden ones are left out.

        A link counts as what it leads to, also outside of this folder; ask `holds` before you follow it. A folder that
        is not there or cannot be read is empty.

        Raises:
            PathRefusedError: The folder is not below this one.
            OSError: A bucket that cannot be listed, as `storage.files` reports it.
        """
        entries = self._list("/".join(self._parts(relative) if relative else []))
        shown = (name for name in entries if not name.startswith("."))
        return [(name, entries[name].is_folder) for name in sorted(shown, key=natural_order)]

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """(folder relative to this one, its folders, its files) of each folder, in natural order, from the top down.

        Hidden names are left out. A folder taken off the list is not entered, as in `os.walk`; nor is one that is a
        link or whose name ends in `.zarr`.

        Raises:
            OSError: A bucket that cannot be listed, as `storage.files` reports it.
        """
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            entries = self._list(folder)
            listed = [name for name in sorted(entries, key=natural_order) if not name.startswith(".")]
            folders = [name for name in listed if entries[name].is_folder]
            yield folder, folders, [name for name in listed if not entries[name].is_folder]
            below = folder + "/" if folder else ""
            if not (not folder and self.name.endswith(".zarr")):
                waiting += [
                    below + name for name in reversed(folders) if not entries[name].is_link and not _is_zarr_name(name)
                ]

    def holds(self, path: str | Path) -> bool:
        """Whether a path, all links followed, is this folder or below it."""
        if self.is_remote:
            text = str(path)
            return (text == self.root or text.startswith(self.root + "/")) and ".." not in text.split("/")
        try:
            return not storage.is_uri(path) and Path(os.path.realpath(path)).is_relative_to(self.root)
        except ValueError:  # a name that no file can have: with a null byte, or not encodable
            return False

    def relative(self, path: str | Path) -> str:
        """The path as people read it in a message: relative to this folder, with forward slashes."""
        text = str(path)
        if self.is_remote:
            return (text[len(self.root) + 1 :] or ".") if self.holds(text) else text
        try:
            return Path(path).relative_to(self.root).as_posix()
        except ValueError:
            return text

    def _parts(self, relative: str) -> list[str]:
        text = relative.strip().replace("\\", "/")
        if not text or "\0" in text:
            raise PathRefusedError("missing_path", "no path", "a path relative to the screen's folder", "Fill it in.")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if text.startswith("/") or _SCHEME_OR_DRIVE.match(relative.strip()) or ".." in parts:
            raise _outside(relative)
        return parts

    def _list(self, folder: str) -> dict[str, _Entry]:
        if folder not in self._entries:
            if self.is_remote:
                self._list_remote(folder)
            else:
                self._entries[folder] = self._list_local(folder)
        return self._entries[folder]

    def _list_local(self, folder: str) -> dict[str, _Entry]:
        path = os.path.join(self.root, *folder.split("/"))  # noqa: PTH118 - called for each folder of a screen
        if not self.holds(path):
            raise _outside(f"{folder}, a link to another folder")
        try:
            with os.scandir(path) as entries:
                return {entry.name: _Entry(entry.is_dir(), entry.is_symlink()) for entry in entries}
        except (OSError, ValueError):
            return {}

    def _list_remote(self, folder: str) -> None:
        top = folder.partition("/")[0]
        if not folder or any(_is_zarr_name(name) for name in (self.name, *folder.split("/"))):
            below = f"{self.root}/{folder}" if folder else self.root
            names = storage.list_one_level(below)
            self._entries[folder] = {name: _Entry(names[name]) for name in names if name not in ("", ".", "..")}
            return
        if top not in self._entries:
            self._entries[top] = {}
            for key in storage.list_objects(f"{self.root}/{top}"):
                self._add(top, key)
        self._entries.setdefault(folder, {})

    def _add(self, top: str, key: str) -> None:
        """Notes an object and the folders above it; a key that no path can name, such as `a//b`, is left out."""
        *folders, name = key.split("/")
        if any(part in ("", ".", "..") for part in folders):
            return
        folder = top
        for part in folders:
            self._entries.setdefault(folder, {})[part] = _Entry(True)
            folder += f"/{part}"
        entries = self._entries.setdefault(folder, {})
        if name not in ("", ".", "..") and name not in entries:  # an empty name is the mark of an empty folder
            entries[name] = _Entry(False)


def _is_zarr_name(name: str) -> bool:
    return name.endswith(".zarr")


def _outside(found: str) -> PathRefusedError:
    return PathRefusedError(
        "path_outside_screen",
        found,
        "a path below the screen's folder, without .., a leading / or a scheme",
        "Move the file into the screen's folder and name it relative to that folder.",
    )
