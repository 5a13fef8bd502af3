"""One small screen for all trainings and audits, and trials that run one by one in this process."""

from __future__ import annotations

import pytest
from tests.embed.small_screen import SmallScreen, make_small_screen
from tests.tune.in_process import run_in_process

from cytolake.tune import study


@pytest.fixture(scope="session")
def small_screen(tmp_path_factory: pytest.TempPathFactory) -> SmallScreen:
    """Its tables are read-only; trainings write to its runs folder."""
    return make_small_screen(tmp_path_factory.mktemp("tune"))


@pytest.fixture
def calls_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_calls` without Ray, whose own trials test_trials.py and test_sweep.py run."""
    monkeypatch.setattr(study, "run_calls", run_in_process)
