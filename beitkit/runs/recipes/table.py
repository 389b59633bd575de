"""Recipes: complete configs of pre-training, fine-tuning and segmentation, as published, by name.

`beitkit recipes` lists them, `--recipe NAME` (or `recipe="NAME"` in Python) makes a recipe's values the defaults of a run. To
add a recipe, add a row to the table of its verb. Nothing here imports torch.
"""

from __future__ import annotations

import difflib

from beitkit.errors import UserError
from beitkit.runs.recipes.finetuning import FINETUNING
from beitkit.runs.recipes.pretraining import PRETRAINING
from beitkit.runs.recipes.recipe import Recipe
from beitkit.runs.recipes.segmentation import SEGMENTATION
from beitkit.runs.recipes.supervised import SUPERVISED

RECIPES = {recipe.name: recipe for recipe in (*PRETRAINING, *FINETUNING, *SUPERVISED, *SEGMENTATION)}
"""All recipes by name, in the order in which they are listed."""


def recipe_named(name: str, verb: str | None = None) -> Recipe:
    """The recipe of a name; `verb` is what it must be for, None takes any.

    Raises:
        UserError: if there is none (the message names the nearest), or it is another verb's.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"there is no recipe {name!r}{meant}; beitkit recipes lists them")
    recipe = RECIPES[name]
    if verb not in (None, recipe.verb):
        raise UserError(f"the recipe {name!r} is for beitkit {recipe.verb}, not for {verb}; beitkit recipes lists all")
    return recipe
