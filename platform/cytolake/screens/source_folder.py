"""The folder of a screen, and the one rule for paths found in it: they stay below it."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SCHEME_OR_DRIVE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://|[A-Za-z]:[\\/]")


class PathRefusedError(ValueError):
    """A path that must not or cannot be read; the fields of a `Problem`."""

    def __init__(self, problem: str, found: str, expected: str, next_step: str) -> None:
        self.problem, self.found, self.expected, self.next_step = problem, found, expected, next_step
        super().__init__(f"{problem}: found {found}, expected {expected}. {next_step}")


class SourceFolder:
    """A screen's folder. Lists each folder below it once, so that an index of many files costs no look-up for each."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._entries: dict[str, dict[str, bool]] = {}  # folder -> {name: is a link}

    def find(self, relative: str) -> str:
        """Absolute path of a file or folder that is named relative to this folder and is there.

        Raises:
            PathRefusedError: Empty, absolute, with `..` or a scheme, led outside by a link, or not there.
        """
        text = relative.strip().replace("\\", "/")
        if not text or "\0" in text:
            raise PathRefusedError("missing_path", "no path", "a path relative to the screen's folder", "Fill it in.")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if text.startswith("/") or _SCHEME_OR_DRIVE.match(relative.strip()) or ".." in parts or not parts:
            raise _outside(relative)
        folder = os.path.join(self.root, *parts[:-1])  # noqa: PTH118 - called for each of many files
        entries = self._list(folder)
        is_link = entries.get(parts[-1])
        if is_link is None:
            raise PathRefusedError(
                "missing_file",
                "no such file on disk",
                "the file that is named",
                "Copy the file into the screen's folder, or remove the row that names it.",
            )
        path = os.path.join(folder, parts[-1])  # noqa: PTH118
        if is_link and not self.holds(path):
            raise _outside(f"{relative}, a link to another folder")
        return path

    def holds(self, path: str | Path) -> bool:
        """Whether a path, all links followed, is this folder or below it."""
        return Path(os.path.realpath(path)).is_relative_to(self.root)

    def relative(self, path: str | Path) -> str:
        """The path as people read it in a message: relative to this folder, with forward slashes."""
        try:
            return Path(path).relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def _list(self, folder: str) -> dict[str, bool]:
        if folder not in self._entries:
            if not self.holds(folder):
                raise _outside(f"{self.relative(folder)}, a link to another folder")
            try:
                with os.scandir(folder) as entries:
                    self._entries[folder] = {entry.name: entry.is_symlink() for entry in entries}
            except OSError:
                self._entries[folder] = {}
        return self._entries[folder]


def _outside(found: str) -> PathRefusedError:
    return PathRefusedError(
        "path_outside_screen",
        found,
        "a path below the screen's folder, without .., a leading / or a scheme",
        "Move the file into the screen's folder and name it relative to that folder.",
    )
