"""`beitkit recipes`: list the published recipes, or show one in full. Imports no torch."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table

from beitkit.command.following import command as following
from beitkit.configs.codec import to_json
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.recipes.config import RecipesRun
from beitkit.runs.recipes.recipe import Recipe
from beitkit.runs.recipes.table import RECIPES, recipe_named
from beitkit.terminal import bare


def run(config: RecipesRun) -> tuple[Recipe, ...]:
    """Print the names of all recipes, what some of them are, or one in full; returns those that were printed."""
    shown = _chosen(config.name)
    if config.name in RECIPES:
        _print_one(shown[0])
        return shown
    if config.name is None and not config.all:
        _print_names(shown)
    else:
        _print_table(shown)
    print("Next: beitkit recipes NAME (one in full, with the command that runs it)")
    return shown


def _chosen(name: str | None) -> tuple[Recipe, ...]:
    """The recipe of this name, else those with it in their names, else in their sentences."""
    if name is None:
        return tuple(RECIPES.values())
    if name in RECIPES:
        return (RECIPES[name],)
    named = tuple(recipe for recipe in RECIPES.values() if name.lower() in recipe.name)
    described = tuple(recipe for recipe in RECIPES.values() if name.lower() in recipe.what.lower())
    return named or described or (recipe_named(name),)


def answer(config: RecipesRun, shown: tuple[Recipe, ...]) -> list[dict[str, Any]] | dict[str, Any]:
    """What `--json` prints: a list, or the recipe that is named."""
    described = [description(recipe) for recipe in shown]
    return described[0] if config.name in RECIPES else described


def description(recipe: Recipe) -> dict[str, Any]:
    """All there is to say of a recipe, as JSON; the config names the missing paths in capitals."""
    return {
        "name": recipe.name,
        "verb": recipe.verb,
        "what": recipe.text,
        "source": recipe.source,
        "published": recipe.published,
        "measured": recipe.measured,
        "batch": recipe.batch,
        "rate": recipe.rate,
        "hardware": recipe.hardware,
        "command": command(recipe),
        "config": to_json(recipe.config),
    }


def command(recipe: Recipe) -> str:
    """The line to type; what only the reader has is in capitals."""
    config = recipe.config
    options = [name for name in recipe.paths if name != "images"]
    if isinstance(config, PretrainRun) and config.target == "tokens":
        options.insert(0, "tokenizer")
    given = {name: f"runs/{recipe.name}" if name == "out" else name.upper() for name in options}
    images = {"finetune": "LABELED", "segment": "SCENES"}.get(recipe.verb, "IMAGES")
    return following(recipe.verb, images, recipe=recipe.name, **given)


def _print_names(recipes: tuple[Recipe, ...]) -> None:
    """All names by verb, on one screen."""
    columns = max(1, (shutil.get_terminal_size().columns - 2) // (max(len(recipe.name) for recipe in recipes) + 2))
    for verb in dict.fromkeys(recipe.verb for recipe in recipes):
        names = [recipe.name for recipe in recipes if recipe.verb == verb]
        print(f"beitkit {verb} --recipe")
        rows = -(-len(names) // columns)
        width = max(map(len, names)) + 2
        for row in range(rows):
            print("  " + "".join(name.ljust(width) for name in names[row::rows]).rstrip())
    print("beitkit recipes v2 describes those with v2 in their names, --all every one.")


def _print_table(recipes: tuple[Recipe, ...]) -> None:
    table = Table("recipe", "what it reproduces; published; measured here", box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for recipe in recipes:
        # Two lines a recipe: in four columns the sentences would not fit a terminal.
        table.add_row(recipe.name, recipe.what)
        table.add_row("", f"published: {recipe.published}; here: {recipe.measured or 'not measured'}")
    Console(file=bare(sys.stdout), highlight=False, markup=False).print(table)


def _print_one(recipe: Recipe) -> None:
    facts = {
        "source": recipe.source,
        "published": recipe.published,
        "here": recipe.measured or "not measured",
        "batch": recipe.batch,
        "rate": recipe.rate,
        "hardware": recipe.hardware,
    }
    print(f"{recipe.name}\n\n{recipe.what}\n")
    if recipe.note:
        print(textwrap.fill(recipe.note, 120) + "\n")
    print("\n".join(f"{name:<10} {value}" for name, value in facts.items()))
    print(f"\n{json.dumps(to_json(recipe.config), indent=2)}\n")
    print(f"Next: {command(recipe)}")
