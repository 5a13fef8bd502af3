"""Recipes: functions that return one complete, typed `PipelineConfig`. A job takes a recipe's name or file."""

from cytolake.pipeline.root import RECIPE_FILE
from cytolake.recipes.registry import RECIPES, build_recipe

__all__ = ["RECIPES", "RECIPE_FILE", "build_recipe"]
