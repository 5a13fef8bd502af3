from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from cytolake.catalog.ingest.plates import IngestReport
from cytolake.cli.main import app
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


@pytest.mark.parametrize(
    "report", [{"refused": (PROBLEM,)}, {"without_sites": ("S/P1",)}, {"without_crops": ("S/P1",)}]
)
def test_an_ingest_that_refuses_a_plate_or_reads_no_site_or_crop_of_it_ends_with_1(monkeypatch, report):
    with pytest.raises(typer.Exit) as ended:
        run(monkeypatch, **report)
    assert ended.value.exit_code == 1


@pytest.mark.parametrize("report", [{}, {"left_out": (PROBLEM,)}])
def test_an_ingest_that_skips_and_leaves_out_what_was_retracted_ends_well(monkeypatch, report):
    run(monkeypatch, **report)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ("[{screen: a, path: nope}]", "no such folder"),
        ("[{screen: a, path: nope}, {screen: b, path: empty}]", "an empty folder"),
        ("[{screen: a, path: words}]", "words.txt"),
        ("[{screen: a, path: words, layout: load-data}]", "a"),
        ("[]", "it names no screen"),
    ],
)
def test_an_ingest_of_which_nothing_can_come_in_makes_no_catalog(tmp_path, sources, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.txt").write_text("words")
    settings = ["--set", f"screens.root={tmp_path}", "--set", f"root={tmp_path / 'lake'}"]
    done = CliRunner().invoke(
        app, ["ingest", "--recipe", "own_screen", "--set", f"screens.sources={sources}", *settings]
    )
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "lake").exists()


def test_a_root_that_can_be_no_folder_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    for root, said in (("file", "found a file"), ("file/below", "Not a directory")):
        done = CliRunner().invoke(app, ["pipeline", "--recipe", "demo", "--set", f"root={tmp_path / root}"])
        assert done.exit_code == 2
        assert said in done.output
        assert "Give another root" in done.output


def test_an_empty_root_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["ingest", "--recipe", "demo", "--set", "root="])
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "root: found ''" in done.output
    assert CliRunner().invoke(app, ["tables", "--root", ""]).exit_code == 2
