from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console

from cytolake.catalog.ingest.plates import IngestReport
from cytolake.pipeline import stages
from cytolake.screens.plate import Problem

PROBLEM = Problem(screen="S", plate="P1", problem="plate_changed", found="a", expected="b", next_step="Do.")
NOTHING = {"ingested": (), "skipped": ("p",), "refused": (), "n_sites": 0, "n_crops": 0, "n_quarantined": 0}


def run(monkeypatch, **report):
    @contextmanager
    def session(*_, **__):
        yield SimpleNamespace(simulate=lambda: None, ingest=lambda: IngestReport(**(NOTHING | report)))

    monkeypatch.setattr(stages, "_steps", session)
    stages.ingest(None, Console())


@pytest.mark.parametrize("report", [{"refused": (PROBLEM,)}, {"without_sites": ("S/P1",)}])
def test_an_ingest_that_refuses_a_plate_or_reads_no_site_of_it_ends_with_1(monkeypatch, report):
    with pytest.raises(typer.Exit) as ended:
        run(monkeypatch, **report)
    assert ended.value.exit_code == 1


@pytest.mark.parametrize("report", [{}, {"left_out": (PROBLEM,)}])
def test_an_ingest_that_skips_and_leaves_out_what_was_retracted_ends_well(monkeypatch, report):
    run(monkeypatch, **report)
