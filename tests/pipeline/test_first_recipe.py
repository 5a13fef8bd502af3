"""What `cytolake init` writes for a screen: it is read back, and says why."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cytolake.cli.main import app
from cytolake.pipeline.first_recipe import propose_recipe, recipe_name
from cytolake.recipes import build_recipe
from cytolake.screens.simulated.cells import NUCLEUS_RADIUS_PX
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.screens.sources import ScreenSource

SCREEN = SimulatedScreen(
    screen="my screen",
    n_plates=2,
    n_pathways=1,
    genes_per_pathway=3,
    guides_per_gene=1,
    n_compounds=0,
    n_negative_controls=2,
    n_positive_controls=0,
    sites_per_well=1,
    site_size_px=192,
    artefact_share=0,
)


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("screens")
    simulate_screen(SCREEN, folder)
    return folder / "my screen"


def with_labels(screen: Path, change: dict[str, str]) -> ScreenSource:
    """The screen with columns of its plate map changed: a format of the row each."""
    with (screen / "platemap.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (screen / "changed.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **{column: text.format(**row) for column, text in change.items()}} for row in rows)
    return ScreenSource(screen="a", path=str(screen), plate_map="changed.csv")


def test_init_writes_a_recipe_that_a_job_can_run(screen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", str(screen)])
    assert done.exit_code == 0, done.output
    written = (tmp_path / "cytolake.yaml").read_text()
    assert written in done.output
    config = build_recipe("")
    assert config.name == recipe_name(str(screen)) == "my_screen"
    assert config.screens.simulate is None
    assert config.screens.sources == (ScreenSource(screen="my_screen", path=str(screen), layout="ome-zarr"),)
    assert config.pretrain.model.channels == ("DNA", "ER", "RNA", "AGP", "Mito")
    assert config.ingest.crop_size == config.pretrain.model.crop_size
    assert 192 % config.ingest.crop_size == 0, "nothing of a site is left over"
    assert 2.5 < config.ingest.crop_size / (2 * NUCLEUS_RADIUS_PX) < 6
    assert (config.probe.label, config.probe.split) == ("perturbation", "plate")
    again = CliRunner().invoke(app, ["init", str(screen)])
    assert again.exit_code == 2
    assert "found a file there" in again.output
    assert (tmp_path / "cytolake.yaml").read_text() == written


def test_a_recipe_that_is_there_is_refused_before_the_screen_is_looked_at(screen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cytolake.yaml").write_text("name: mine\n")
    found = CliRunner().invoke(app, ["init", str(tmp_path / "no such screen")])
    assert found.exit_code == 2
    assert "found a file there" in found.output
    assert found.stdout == ""
    assert Path("cytolake.yaml").read_text() == "name: mine\n"


def test_a_recipe_counts_one_plate_in_the_singular():
    from cytolake.pipeline.counts import count

    assert [count(n, "plate") for n in (0, 1, 2, 1200)] == ["0 plates", "1 plate", "2 plates", "1,200 plates"]


def test_wells_are_held_out_where_no_perturbation_is_on_two_plates(screen):
    changed = {"perturbation": "{perturbation} {plate}", "well": "{well}", "control": ""}
    proposal = propose_recipe(with_labels(screen, changed), "a")
    assert proposal.fields["probe"] == {"label": "perturbation", "split": "well"}
    assert "wells are held out" in proposal.reasons["probe"]


def test_a_screen_without_labels_gets_a_recipe_that_says_so(screen):
    nothing = dict.fromkeys(("perturbation", "gene", "guide", "compound", "control"), "")
    proposal = propose_recipe(with_labels(screen, nothing), "a")
    assert proposal.fields["probe"] == {"label": "plate", "split": "well"}
    assert "no perturbations" in proposal.reasons["probe"]


def test_a_folder_without_images_gets_no_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    done = CliRunner().invoke(app, ["init", "empty"])
    assert done.exit_code == 2
    assert not (tmp_path / "cytolake.yaml").exists()


def test_a_job_without_a_recipe_never_runs_the_simulated_screen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["ingest"])
    assert done.exit_code == 2
    assert "cytolake init FOLDER" in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_is_plain_yaml(screen):
    proposal = propose_recipe(ScreenSource(screen="a", path=str(screen)), "a")
    assert yaml.safe_load(yaml.safe_dump(proposal.fields)) == json.loads(json.dumps(proposal.fields))
