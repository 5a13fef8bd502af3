"""Every recipe by its name, and recipes in files."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import yaml

from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.overrides import RecipeError, apply_fields, field_name, read_yaml
from cytolake.pipeline.root import RECIPE_FILE
from cytolake.recipes.demo import demo
from cytolake.recipes.natural_images import natural_images
from cytolake.recipes.own_screen import own_screen
from cytolake.recipes.published import (
    ca_mae_s16,
    chada_vit_moyen,
    chada_vit_s16,
    mae_vit_b8,
    mae_vit_b16,
    mae_vit_g8,
    mae_vit_l8,
    mae_vit_l16,
    mae_vit_s16,
)
from cytolake.recipes.real_screens import real_screens

RECIPES: dict[str, Callable[[], PipelineConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        demo,
        own_screen,
        real_screens,
        natural_images,
        mae_vit_s16,
        mae_vit_b16,
        mae_vit_b8,
        mae_vit_l16,
        mae_vit_l8,
        mae_vit_g8,
        ca_mae_s16,
        chada_vit_s16,
        chada_vit_moyen,
    )
}


BASED_ON = "based_on"
"""Field of a recipe file: the recipe that provides all other fields."""


def build_recipe(name: str) -> PipelineConfig:
    """The config of a recipe.

    Args:
        name: Of a recipe, or the path of a recipe file (.yaml): fields of `PipelineConfig`, nested as there, and
            `based_on`. Empty: the file cytolake.yaml of the working directory.

    Raises:
        RecipeError: No recipe of that name (the text lists those there are), no such file, or a file with a field or
            value that a recipe cannot have.
    """
    if not name:
        if not Path(RECIPE_FILE).is_file():
            raise RecipeError(
                f"no recipe was named, and there is no {RECIPE_FILE} here. `cytolake init FOLDER` writes one for the "
                "screen in that folder; --recipe demo runs on a simulated screen; `cytolake recipes` lists the others."
            )
        name = RECIPE_FILE
    if name.endswith((".yaml", ".yml")):
        return _read_recipe(Path(name))
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"no recipe {name!r}.{hint} There are: {', '.join(RECIPES)}.")
    return RECIPES[name]()


def _read_recipe(path: Path) -> PipelineConfig:
    try:
        given = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path}: found {error}, expected a readable YAML file.") from error
    if not isinstance(given, dict) or not isinstance(given.get(BASED_ON), str):
        found = (
            f"found the fields {', '.join(map(field_name, given))}" if isinstance(given, dict) else "found no fields"
        )
        raise RecipeError(
            f"recipe {path}: {found}, expected fields of a recipe, and `{BASED_ON}` with the name of the recipe that "
            f"holds for all others, such as `{BASED_ON}: own_screen`."
        )
    fields = {name: value for name, value in given.items() if name != BASED_ON}
    base = given[BASED_ON]
    if base.endswith((".yaml", ".yml")):
        raise RecipeError(f"recipe {path}, {BASED_ON}: found the file {base}, expected one of {', '.join(RECIPES)}.")
    return apply_fields(build_recipe(base), fields, str(path))
