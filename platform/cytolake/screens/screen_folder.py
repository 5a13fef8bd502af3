"""Opening the folder of a screen, on a disk or in a bucket."""

from __future__ import annotations

from pathlib import Path

from cytolake.screens.plate import Problem, ScreenError
from cytolake.storage import files as storage
from cytolake.storage.source_folder import PathRefusedError, SourceFolder


def open_folder(screen: str, path: str) -> SourceFolder:
    """The folder of a screen, which exists and is not empty.

    Raises:
        ScreenError: `missing_folder`, `not_a_folder`, `empty_folder`, `unreadable_folder`, `unsupported_path` (a URI
            of another scheme than s3).
    """
    if storage.is_uri(path):
        if not path.lower().startswith("s3://"):
            raise ScreenError(
                folder_problem(
                    screen,
                    path,
                    "unsupported_path",
                    path.partition("://")[0] + "://",
                    "a folder on a local or mounted disk, or s3://bucket/folder",
                    "Mount the storage, or copy the screen.",
                )
            )
        try:
            folder = SourceFolder(path)
            names = folder.list_folder()
        except (OSError, PathRefusedError) as error:
            raise ScreenError(unreadable_folder(screen, path, error)) from error
        if not names:
            raise ScreenError(
                folder_problem(
                    screen,
                    path,
                    "empty_folder",
                    "no object below this prefix",
                    "plates or images",
                    "Correct `path`, or copy the screen there; upper and lower case matter in a prefix.",
                )
            )
        return folder
    folder_path = Path(path).expanduser()
    if not folder_path.is_dir():
        is_file = folder_path.exists()
        raise ScreenError(
            folder_problem(
                screen,
                path,
                "not_a_folder" if is_file else "missing_folder",
                "a file" if is_file else "no such folder",
                "the screen's folder",
                "Correct `path` of the screen; a relative path starts at the working directory.",
            )
        )
    try:
        is_empty = not any(folder_path.iterdir())
    except OSError as error:
        raise ScreenError(unreadable_folder(screen, path, error)) from error
    if is_empty:
        raise ScreenError(
            folder_problem(
                screen,
                path,
                "empty_folder",
                "an empty folder",
                "plates or images",
                "Copy the screen, or correct `path`.",
            )
        )
    return SourceFolder(folder_path)


def unreadable_folder(screen: str, path: str, error: Exception) -> Problem:
    """The problem of a screen's folder that cannot be listed or read."""
    is_missing = isinstance(error, FileNotFoundError)
    return folder_problem(
        screen,
        path,
        "missing_folder" if is_missing else "unreadable_folder",
        str(error) or type(error).__name__,
        "a folder that can be listed and read",
        "Correct `path`; for a bucket check AWS_ENDPOINT_URL and the AWS_* credentials."
        if storage.is_uri(path)
        else "Check its permissions.",
    )


def folder_problem(screen: str, path: str, problem: str, found: str, expected: str, next_step: str) -> Problem:
    """A problem of a screen's folder."""
    return Problem(screen=screen, file=path, problem=problem, found=found, expected=expected, next_step=next_step)
