"""A catalog of its own for each test that runs documentation: commands of the tutorial write."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "platform" / "docs"))  # for `generators`


@pytest.fixture
def lake(golden_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the golden lake as `cytolake_data` of the working directory, which is empty otherwise.

    Images and weights stay where they are: the tables name their places.
    """
    copy = tmp_path / "cytolake_data"
    shutil.copytree(golden_lake, copy, ignore=shutil.ignore_patterns("screens", "runs", "packs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CYTOLAKE_ROOT", raising=False)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return copy
