"""Input of the report page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cytolake.tune.block_search import BlockChoice


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """Which results the page is about."""

    title: str
    qc_id: str
    curation_id: str
    run_folder: Path
    """Where pretraining left its loss history and reconstructions."""
    representation_ids: tuple[str, ...]
    """All that were compared."""
    choice: BlockChoice
    others: tuple[BlockChoice, ...] = ()
    """The same search by single crops, and with other things held out."""
    facts: tuple[tuple[str, str], ...]
    """Name and value of what was chosen."""
    objective: str = ""
    """What was trained, in a sentence."""
    commands: tuple[tuple[str, str], ...]
    """What the reader can do next, and the command."""
