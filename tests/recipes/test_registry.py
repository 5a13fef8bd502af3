from __future__ import annotations

import dataclasses

import pytest
from pydantic import TypeAdapter
from tests.fast_cases import fast_cases

from cytolake.cli.jobs import show_config
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.overrides import RecipeError, apply_overrides
from cytolake.recipes import RECIPES, build_recipe
from cytolake.screens.sources import ScreenSource


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_has_the_name_of_its_function(name):
    config = build_recipe(name)
    assert config.name == name
    assert config.screens.sources or config.screens.simulate or name == "own_screen"  # which a recipe file fills in
    assert config.ingest.crop_size == config.pretrain.model.crop_size
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_written_out_and_read_back_is_the_same(name):
    config = build_recipe(name)
    adapter = TypeAdapter(PipelineConfig)
    assert adapter.validate_python(adapter.dump_python(config, mode="json")) == config


@pytest.mark.parametrize("name", fast_cases(RECIPES, "demo", "real_screens", "mae_vit_g8"))
def test_every_simple_field_can_be_set_to_the_value_it_has(name):
    config = build_recipe(name)
    assert apply_overrides(config, list(_assignments(config))) == config


@pytest.mark.parametrize("name", fast_cases(RECIPES, "demo", "real_screens", "natural_images"))
def test_what_show_prints_is_a_recipe_file_of_the_same_config(name, tmp_path):
    config = build_recipe(name)
    sources = (ScreenSource(screen="007", path="a"), ScreenSource(screen="no", path="b", z="max", channels=("561",)))
    config = dataclasses.replace(config, screens=dataclasses.replace(config.screens, sources=sources))
    for base in (name, "demo", "own_screen"):
        path = tmp_path / f"{base}.yaml"
        path.write_text(f"based_on: {base}\n{show_config(config)}")
        assert build_recipe(str(path)) == config


def test_an_unknown_recipe_names_the_nearest_and_all():
    with pytest.raises(RecipeError, match=r"no recipe 'demos'. Did you mean 'demo'\? There are: demo, own_screen"):
        build_recipe("demos")


def _assignments(config: object, prefix: str = ""):
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _assignments(value, f"{prefix}{field.name}.")
        elif value is None or isinstance(value, bool | int | float | str):
            yield f"{prefix}{field.name}={'null' if value is None else str(value)}"
