"""Recipes: complete configs of pre-training, fine-tuning and segmentation, as published, by name.

`beitkit recipes` lists them, `--recipe NAME` (or `recipe="NAME"` in Python) makes a recipe's values the defaults of a run. A
recipe is a function with a docstring; calling it returns the config. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import replace

from beitkit.errors import UserError
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.recipes.finetuning import FINETUNING
from beitkit.runs.recipes.pretraining import PRETRAINING
from beitkit.runs.recipes.recipe import Recipe
from beitkit.runs.recipes.segmentation import SEGMENTATION
from beitkit.runs.recipes.supervised import SUPERVISED
from beitkit.runs.segment.config import SegmentRun

AnyRecipe = Recipe[PretrainRun] | Recipe[FinetuneRun] | Recipe[SegmentRun]
RECIPES: dict[str, AnyRecipe] = {recipe.name: recipe for recipe in (*PRETRAINING, *FINETUNING, *SUPERVISED, *SEGMENTATION)}
"""All recipes by name."""


def recipe_named(name: str) -> AnyRecipe:
    """The recipe of a name.

    Raises:
        UserError: if there is none; the message names the nearest.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"there is no recipe {name!r}{meant}; beitkit recipes lists them")
    return RECIPES[name]


def started_from(name: str, verb: str, given: Collection[str]) -> PretrainRun | FinetuneRun | SegmentRun:
    """The recipe's config for a run of `verb` that overrides the options `given` (as in `steps`, `optim.warmup_epochs`).

    A recipe's length or warm-up makes way for one that is given in the other unit.

    Raises:
        UserError: if there is no such recipe, or it is another verb's.
    """
    recipe = recipe_named(name)
    if recipe.verb != verb:
        theirs = f"is for beitkit {recipe.verb}, not for {verb}"
        raise UserError(f"the recipe {name!r} {theirs}; beitkit recipes lists those of {verb}")
    config = recipe()
    if "steps" in given:
        config = replace(config, train=replace(config.train, epochs=None))
    if "epochs" in given:
        config = replace(config, train=replace(config.train, steps=None))
    if "optim.warmup_epochs" in given:
        config = replace(config, optim=replace(config.optim, warmup_steps=None))
    return config
