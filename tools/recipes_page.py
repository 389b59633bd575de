"""Write the table of recipes into docs/guide/recipes.md, from the code."""

import sys
from pathlib import Path

from beitkit.runs.recipes.table import RECIPES

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "recipes.md"
START, END = "<!-- made by tools/recipes_page.py -->\n", "<!-- end -->\n"


def table() -> str:
    """One row a recipe."""
    rows = ["| recipe | what it reproduces | published | here | batch | source |", "|---|---|---|---|---|---|"]
    for recipe in RECIPES.values():
        measured = recipe.measured or "not measured"
        rows.append(f"| `{recipe.name}` | {recipe.what} | {recipe.published} | {measured} | {recipe.batch} | {recipe.source} |")
    return "\n".join(rows) + "\n"


def updated(page: str) -> str:
    """The page with its table as the code has it."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE}\n")
