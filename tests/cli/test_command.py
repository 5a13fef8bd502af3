"""Bad input on the command line: one sentence, exit code 2, no stack, nothing half-written."""

from __future__ import annotations

import ast
import datetime
from pathlib import Path

import pytest
import typer
import yaml
from tests.catalog.rows import add_rows
from tests.packs.small_pack import write_pack
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.cli.jobs import JOBS, job_command
from cytolake.pipeline import inputs, stages, steps
from cytolake.recipes import build_recipe

pytestmark = pytest.mark.usefixtures("ray_in_process")


def run(job: str, *arguments: str):
    app = typer.Typer()
    app.command()(job_command(job))
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "dmo"], "no recipe 'dmo'. Did you mean 'demo'?"),
        (["--recipe", "demo", "--set", "pretrain.modle.width=3"], "no field 'modle'. Did you mean 'model'?"),
        (["--recipe", "demo", "--set", "pretrain.minibatch_size=lots"], "expected int"),
        (["--recipe", "demo", "--set", "pretrain.minibatch_size=3"], "cannot be shared equally by 2 workers"),
    ],
)
def test_a_wrong_recipe_or_setting_is_refused_before_anything_runs(arguments, said, tmp_path):
    done = run("pipeline", *arguments, "--set", f"root={tmp_path / 'lake'}")
    assert done.exit_code == 2
    assert said in _unwrapped(done.output)
    assert "Traceback" not in done.output
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_an_empty_or_missing_screen_is_named_and_leaves_no_catalog(is_there, tmp_path):
    if is_there:
        (tmp_path / "screens").mkdir()
    done = run(
        "ingest",
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
    assert not (tmp_path / "lake").exists()


def test_a_recipe_without_a_screen_is_refused_with_the_way_to_name_one(tmp_path):
    done = run("ingest", "--recipe", "own_screen", "--set", f"root={tmp_path / 'lake'}")
    assert done.exit_code == 2
    assert "cytolake init FOLDER" in _unwrapped(done.output)


def test_show_prints_the_whole_config_and_runs_nothing(tmp_path):
    done = run(
        "pipeline", "--recipe", "demo", "--show", "--set", f"root={tmp_path / 'lake'}", "--set", "pretrain.seed=7"
    )
    assert done.exit_code == 0
    assert yaml.safe_load(done.output)["pretrain"]["seed"] == 7
    assert not (tmp_path / "lake").exists()


def test_a_dry_run_says_what_training_would_cost_and_leaves_nothing(tmp_path):
    root = tmp_path / "lake"
    settings = ("--set", f"root={root}", "--set", "pretrain.workers=64")
    done = run("pretrain", "--recipe", "mae_vit_g8", "--dry-run", *settings)
    assert done.exit_code == 0
    printed = _unwrapped(done.output)
    assert "pack none yet" in printed
    assert "encoder 1,841.6 M" in printed
    assert "on each of 64" in printed
    assert not root.exists()


def curated(root: Path, *curations: tuple[str, str]) -> None:
    """A catalog with one crop kept by each curation (id and name), the last one newest."""
    catalog = cytolake.catalog.open(root, create=True)
    for day, (identity, name) in enumerate(curations, 1):
        row = {
            "curation_id": identity, "curation": name, "crop_id": "crop0", "plate_id": "plate0", "is_kept": True,
            "reason": "", "curated_at": datetime.datetime(2026, 1, day, tzinfo=datetime.UTC),
        }  # fmt: skip
        add_rows(catalog, "curations", row)
        run = {name: row[name] for name in ("curation_id", "curation", "curated_at")}
        add_rows(catalog, "curation_runs", run | {"spec": "{}", "table_versions": "{}"})


def built(root: Path, curation_id: str, curation: str, pack_id: str) -> None:
    folder = root / "packs" / pack_id
    folder.mkdir(parents=True)
    pack = build_recipe("chada_vit_s16").pack
    settings = {"shuffle_seed": pack.shuffle_seed, "pixels": pack.pixels}
    write_pack(folder, pack_id=pack_id, curation=curation, curation_id=curation_id, **settings)


def test_a_dry_run_takes_the_pack_that_training_would_take(tmp_path):
    curated(tmp_path, ("first", "default"), ("second", "default"), ("other", "phenoprints"))
    for identity, name in (("second", "default"), ("first", "default"), ("other", "phenoprints")):
        built(tmp_path, identity, name, f"of-{identity}")
    settings = ("root=" + str(tmp_path), "pretrain.model.crop_size=8", "pretrain.model.patch_size=8")
    assignments = [part for setting in settings for part in ("--set", setting)]
    done = run("pretrain", "--recipe", "chada_vit_s16", "--dry-run", *assignments)
    shown = _unwrapped(done.output)
    assert "pack of-second, 50 crops" in shown
    assert "5,000 crops of 50 in 20 steps" in shown
    wrong = run("pretrain", "--recipe", "mae_vit_g8", "--dry-run", *assignments[:2])
    assert wrong.exit_code == 2
    assert "pack of-second has crops of 8 px, the model takes 256 px" in _unwrapped(wrong.output)


@pytest.mark.parametrize("job", ["embed", "probe", "promote", "benchmark", "report"])
def test_a_stage_after_curate_builds_no_pack(job, tmp_path, monkeypatch):
    """A pack may be terabytes: it is built by `curate`, and by nothing that was meant to read it."""
    curated(tmp_path, ("first", "default"))
    built(tmp_path, "first", "default", "old")
    monkeypatch.setattr(inputs, "find_built_pack", lambda *_: None)  # as where the pack was deleted
    monkeypatch.setattr(steps, "build_pack", lambda *_: pytest.fail("a pack was built"))
    done = run(job, "--recipe", "chada_vit_s16", "--set", f"root={tmp_path}")
    assert done.exit_code == 2
    assert "Run `cytolake curate`" in _unwrapped(done.output)


def test_a_job_that_costs_little_has_no_dry_run():
    assert run("curate", "--dry-run").exit_code == 2


def test_traceback_shows_where_bad_input_was_noticed():
    assert isinstance(run("pipeline", "--recipe", "dmo", "--traceback").exception, ValueError)


def test_every_job_is_a_stage_and_has_its_file(checkout: Path):
    assert list(JOBS) == list(stages.JOBS)
    for name, job in JOBS.items():
        text = (checkout / "jobs" / f"{name}.py").read_text()
        assert f'run_job("{name}")' in text
        assert ast.get_docstring(ast.parse(text)) == job.about  # the same command by two names


def _unwrapped(text: str) -> str:
    return " ".join(text.split())
