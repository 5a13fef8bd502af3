"""A command that works for minutes says first what it does, and a job counts its time from its start."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
from rich.console import Console
from typer.testing import CliRunner

import cytolake.benchmark.transcriptomics.scores
import cytolake.tune.invariance_audit
from cytolake.cli.main import app
from cytolake.pipeline import stages
from cytolake.pipeline.overrides import apply_overrides
from cytolake.recipes import build_recipe


class StoppedError(ValueError):
    """Stands for the long work: what was printed before it is all that a person has seen."""


def stop(*_, **__):
    raise StoppedError("the work began")


def printed(*words):
    found = CliRunner().invoke(app, [*map(str, words)])
    assert "the work began" in found.output, found.output
    return " ".join(found.stdout.split())


def test_an_audit_says_what_it_will_compute(golden_lake, monkeypatch):
    monkeypatch.setattr(cytolake.tune.invariance_audit, "audit_encoders", stop)
    said = printed("audit", "--keep", "perturbation", "--ignore", "plate", "--root", golden_lake)
    assert re.match(r"audit: 2 encoders \(trained, untrained\), \d+ knobs .* probes of perturbation, plate;", said)


def test_transcriptomics_says_what_it_will_compute(tmp_path, monkeypatch):
    monkeypatch.setattr(cytolake.benchmark.transcriptomics.scores, "score_expression_screen", stop)
    (tmp_path / "screen.h5ad").touch()
    columns = ("--perturbation", "gene", "--control", "none", "--batch", "plate")
    said = printed("transcriptomics", tmp_path / "screen.h5ad", *columns, "--root", tmp_path / "lake")
    assert said.startswith("transcriptomics: 3 embeddings (pca, random, scrambled_pca), 5 tasks, 3 seeds, centred;")


@pytest.fixture
def config(tmp_path):
    return apply_overrides(build_recipe("demo"), [f"root={tmp_path}"])


def test_a_job_prints_the_start_of_ray_and_the_time_of_everything(config, monkeypatch):
    monkeypatch.setattr(stages, "ray_session", lambda _: nullcontext())

    def ingest(config, console: Console) -> None:
        with stages._steps(config, console, create=True):
            console.print("the stage")

    monkeypatch.setitem(stages.JOBS, "ingest", ingest)
    found = CliRunner().invoke(app, ["ingest", "--recipe", "demo", "--set", f"root={config.root}"])
    lines = [line.split()[0] for line in found.stdout.splitlines()]
    assert lines == ["start", "the", "in"], found.output
    assert re.search(r"^in all +\d+\.\d s   from the start of ingest$", found.stdout, re.MULTILINE)
