"""The page of recipes is what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_recipes_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("recipes_page", ROOT / "tools" / "recipes_page.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = tool.PAGE.read_text(encoding="utf-8")
    assert page == tool.updated(page), "run python tools/recipes_page.py"
    assert "| `pretrain-base-in1k` |" in page
