"""Every recipe by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from cytolake.line.config import Line
from cytolake.line.overrides import RecipeError
from cytolake.recipes.demo import demo
from cytolake.recipes.natural_images import natural_images
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

RECIPES: dict[str, Callable[[], Line]] = {
    recipe.__name__: recipe
    for recipe in (
        demo,
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


def build_recipe(name: str) -> Line:
    """The config of a recipe.

    Raises:
        RecipeError: No recipe of that name; the text lists those there are.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"no recipe {name!r}.{hint} There are: {', '.join(RECIPES)}.")
    return RECIPES[name]()
