"""One simulated screen in a catalog for all tests of the detector."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.qc.detector.labelled_screen import ingest_screen


@pytest.fixture(scope="session")
def simulated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the screen (`screens`) and its catalog (`catalog`); read only."""
    root = tmp_path_factory.mktemp("detector")
    ingest_screen(root)
    return root
