"""Recipes: functions that return one complete, typed config of the whole line. A job takes a recipe's name."""

from cytolake.recipes.registry import RECIPES, build_recipe

__all__ = ["RECIPES", "build_recipe"]
