"""Bad input on the command line: one sentence, exit code 2, no stack, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.line import stages
from cytolake.line.command import job_command

pytestmark = pytest.mark.usefixtures("local_ray")


def run(job, *arguments: str):
    app = typer.Typer()
    app.command()(job_command(job, job.__doc__))
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "dmo"], "no recipe 'dmo'. Did you mean 'demo'?"),
        (["--set", "pretrain.modle.width=3"], "no field 'modle'. Did you mean 'model'?"),
        (["--set", "pretrain.minibatch_size=lots"], "expected int"),
        (["--set", "pretrain.minibatch_size=3"], "cannot be shared equally by 2 workers"),
    ],
)
def test_a_wrong_recipe_or_setting_is_told_before_anything_runs(arguments, told, tmp_path):
    done = run(stages.pipeline, *arguments, "--set", f"root={tmp_path / 'lake'}")
    assert done.exit_code == 2
    assert told in _unwrapped(done.output)
    assert "Traceback" not in done.output
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_an_empty_or_missing_screen_is_named_and_leaves_no_rows(is_there, tmp_path):
    if is_there:
        (tmp_path / "screens").mkdir()
    done = run(
        stages.ingest,
        "--recipe",
        "mae_vit_s16",
        "--set",
        f"root={tmp_path / 'lake'}",
        "--set",
        f"screens.root={tmp_path / 'screens'}",
    )
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert str(tmp_path / "screens") in _unwrapped(done.output)
    assert cytolake.catalog.open(tmp_path / "lake").table("plates").num_rows == 0


def test_show_prints_the_whole_config_and_runs_nothing(tmp_path):
    done = run(stages.pipeline, "--show", "--set", f"root={tmp_path / 'lake'}", "--set", "pretrain.seed=7")
    assert done.exit_code == 0
    assert yaml.safe_load(done.output)["pretrain"]["seed"] == 7
    assert not (tmp_path / "lake").exists()


def test_traceback_shows_where_bad_input_was_noticed():
    assert isinstance(run(stages.pipeline, "--recipe", "dmo", "--traceback").exception, ValueError)


@pytest.mark.parametrize("job", stages.JOBS, ids=lambda job: job.__name__)
def test_every_job_has_its_file(job, checkout: Path):
    assert f"run_job({job.__name__}, __doc__)" in (checkout / "jobs" / f"{job.__name__}.py").read_text()


def _unwrapped(text: str) -> str:
    return " ".join(text.split())
