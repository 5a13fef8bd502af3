"""Fitted alignments below the root of a catalog: each is there once, under the id of its content.

Other hardware adds up to other last digits, and so to another id. What was fitted for a request is therefore noted: a
run that was cut short and goes on elsewhere takes the numbers that it began with.
"""

from __future__ import annotations

from pathlib import Path

from cytolake.embed.alignment.fitted import FittedAlignment
from cytolake.storage.atomic_write import atomic_folder, write_text

ALIGNMENTS_FOLDER = "alignments"
_NOTES = "fitted_for"


def keep_alignment(root: str | Path, fitted: FittedAlignment) -> str:
    """Save a fit below a root, unless it is there; its folder shows whole or not at all. Returns its id."""
    folder = alignment_folder(root, fitted.id)
    if not folder.is_dir():
        with atomic_folder(folder) as part:
            fitted.save(part)
    return folder.name


def load_alignment(root: str | Path, alignment_id: str) -> FittedAlignment:
    """Read what `keep_alignment` saved.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged.
    """
    return FittedAlignment.load(alignment_folder(root, alignment_id))


def note_alignment(root: str | Path, request: str, alignment_id: str) -> None:
    """Write down which kept fit a request led to."""
    write_text(Path(root) / ALIGNMENTS_FOLDER / _NOTES / request, f"{alignment_id}\n")


def noted_alignment(root: str | Path, request: str) -> str | None:
    """Id of the kept fit that a request led to; None where there is none (any more)."""
    note = Path(root) / ALIGNMENTS_FOLDER / _NOTES / request
    alignment_id = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    return alignment_id if alignment_id and alignment_folder(root, alignment_id).is_dir() else None


def alignment_folder(root: str | Path, alignment_id: str) -> Path:
    """Where a fit is, or would be."""
    return Path(root) / ALIGNMENTS_FOLDER / alignment_id
