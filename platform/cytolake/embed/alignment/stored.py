"""Stores fitted alignments below the root of a catalog: each once, under the id of its content.

Sums differ in the last digits on other hardware, and so do ids. The fit of a request is therefore cached: a run that
was interrupted and continues elsewhere uses the numbers that it began with.
"""

from __future__ import annotations

from pathlib import Path

from cytolake.embed.alignment.fitted import FittedAlignment
from cytolake.storage.atomic_write import atomic_folder, write_text

ALIGNMENTS_FOLDER = "alignments"
_NOTES = "fitted_for"


def save_alignment(root: str | Path, fitted: FittedAlignment) -> str:
    """Save a fit below a root, unless it is there; its folder appears whole or not at all. Returns its id."""
    folder = alignment_folder(root, fitted.id)
    if not folder.is_dir():
        with atomic_folder(folder) as part:
            fitted.save(part)
    return folder.name


def load_alignment(root: str | Path, alignment_id: str) -> FittedAlignment:
    """Read a fit that `save_alignment` saved.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged.
    """
    return FittedAlignment.load(alignment_folder(root, alignment_id))


def cache_alignment(root: str | Path, request: str, alignment_id: str) -> None:
    """Remember the stored fit of a request."""
    write_text(Path(root) / ALIGNMENTS_FOLDER / _NOTES / request, f"{alignment_id}\n")


def cached_alignment(root: str | Path, request: str) -> str | None:
    """Id of the stored fit of a request; None where there is none (any more)."""
    note = Path(root) / ALIGNMENTS_FOLDER / _NOTES / request
    alignment_id = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    return alignment_id if alignment_id and alignment_folder(root, alignment_id).is_dir() else None


def alignment_folder(root: str | Path, alignment_id: str) -> Path:
    """Where a fit is, or would be."""
    return Path(root) / ALIGNMENTS_FOLDER / alignment_id
