from __future__ import annotations

import pytest
from tests.catalog.small_plate import commit, write_plate
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.catalog.corrections import list_catalog_plates
from cytolake.cli.main import app
from cytolake.cli.options import job_options


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory: plate S/P1 in the catalog `mine`, and a recipe file with this root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CYTOLAKE_ROOT", raising=False)
    commit(cytolake.catalog.open("mine", create=True), write_plate(tmp_path / "source"))
    (tmp_path / "cytolake.yaml").write_text("based_on: own_screen\nroot: mine\n")
    return tmp_path


def run(*words, code=0):
    found = CliRunner().invoke(app, list(words))
    assert found.exit_code == code, found.output
    return found.output


def test_commands_work_on_the_catalog_of_the_recipe_that_lies_here(here):
    assert "S/P1" in run("plates")
    (here / "cytolake.yaml").unlink()
    assert "cytolake_data" in " ".join(run("plates", code=2).split())


def test_a_root_given_to_the_group_holds_for_its_commands(here):
    (here / "cytolake.yaml").unlink()
    run("plates", "--root", "mine", "retract", "S/P1", "--why", "blurred")
    assert [each.state for each in list_catalog_plates(cytolake.catalog.open("mine"))] == ["retracted"]


def test_an_option_that_a_command_lacks_is_not_recommended(here):
    assert "--traceback" not in run("plates", "retract", "S/P9", "--why", "blurred", code=2)
    assert "--traceback" in run("ingest", "--recipe", "nothing", code=2)


def test_the_command_that_computes_again_runs_as_it_is_printed_where_a_recipe_lies(here):
    assert job_options("mine") == ""
    assert job_options("other") == " --set root=other"
    assert job_options("other", "demo") == " --recipe demo --set root=other"  # recorded there
    (here / "cytolake.yaml").unlink()
    assert job_options("mine") == " --recipe NAME --set root=mine"
    assert job_options("mine", "demo") == " --recipe demo --set root=mine"
