"""Recipes in files, and what happens where none is named."""

from __future__ import annotations

import pytest

from cytolake.pipeline.overrides import RecipeError
from cytolake.recipes import build_recipe


def test_fields_of_a_file_replace_those_of_the_recipe_it_is_based_on(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "based_on: own_screen\nname: mine\nscreens:\n  sources:\n  - {screen: a, path: plates, channels: [DNA, ER]}\n"
        "pretrain:\n  learning_rate: 1e-4\n  model: {channels: [DNA, ER], crop_size: 96, patch_size: 16}\n"
    )
    mine, base = build_recipe(str(path)), build_recipe("own_screen")
    assert mine.name == "mine"
    assert mine.screens.sources[0].channels == ("DNA", "ER")
    assert mine.pretrain.learning_rate == 1e-4
    assert (mine.pretrain.model.crop_size, mine.pretrain.model.channels) == (96, ("DNA", "ER"))
    assert mine.pretrain.steps == base.pretrain.steps
    assert mine.pretrain.objective == base.pretrain.objective


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("based_on: own_screen\npretrain: {stepz: 3}\n", ("mine.yaml, pretrain.stepz", "Did you mean 'steps'?")),
        ("based_on: own_screen\npretrain: {steps: many}\n", ("mine.yaml, pretrain.steps", "'many'", "int")),
        ("based_on: own_screen\npretrain: {steps: 0}\n", ("mine.yaml, pretrain.steps",)),
        ("based_on: own_scren\n", ("'own_scren'", "Did you mean 'own_screen'?")),
        ("based_on: mine.yaml\n", ("based_on", "found the file mine.yaml")),
        ("name: mine\nroot: r\n", ("mine.yaml", "found the fields name, root", "`based_on`")),
        ("based_on: [\n", ("mine.yaml", "readable YAML")),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_field(tmp_path, text, parts):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        build_recipe(str(path))
    for part in parts:
        assert part in str(caught.value)


def test_without_a_name_the_file_of_the_working_directory_is_taken_and_never_a_simulated_screen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="cytolake init FOLDER"):
        build_recipe("")
    (tmp_path / "cytolake.yaml").write_text("based_on: own_screen\nname: mine\n")
    assert build_recipe("").name == "mine"


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"gone\.yaml"):
        build_recipe(str(tmp_path / "gone.yaml"))
