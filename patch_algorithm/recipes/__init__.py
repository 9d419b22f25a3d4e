"""The recipes: complete, commented training configurations, and the command that writes them."""

from __future__ import annotations

from patch_algorithm.recipes.library import Recipe, find_recipe, recipes

__all__ = ["Recipe", "find_recipe", "recipes"]
