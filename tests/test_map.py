"""What docs/architecture.md and CONTRIBUTING.md name is there: files, folders, names; and files that other pages name."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md")
CODE = re.compile(r"`([^`]+)`")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"[\w*.-]*/[\w*./-]*|[\w-]+\.(?:py|md|toml|txt)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
LINK = re.compile(r"\]\((?!https?:|#)([^()\s#]+)[^()\s]*\)")
FILE = re.compile(r"(?:beitkit|benchmarks|tests|tools)/[\w/]+\.py")
MADE = {"config.json"}
"""What runs write."""


def is_path(name: str) -> bool:
    """Whether a file, a folder or a pattern of them is in the repository or the package; a bare file may be in any room."""
    folders = (ROOT, ROOT / "beitkit")
    return any(True for folder in folders for _ in folder.glob(name)) or (
        "/" not in name and any(ROOT.glob(f"beitkit/*/*/{name}"))
    )


def is_name(name: str) -> bool:
    """Whether the package has a module, class, function, constant or field of this dotted name."""
    parts = name.removeprefix("beitkit.").split(".")
    found: Any = importlib.import_module("beitkit")
    for place, part in enumerate(parts):
        try:
            found = importlib.import_module(f"beitkit.{'.'.join(parts[: place + 1])}")
        except ModuleNotFoundError:
            if part not in getattr(found, "__annotations__", {}) and not hasattr(found, part):
                return False
            found = getattr(found, part, None)
    return True


def is_used(word: str) -> bool:
    """Whether a single word is a module, or stands in the package's code."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "beitkit").rglob("*.py"))
    return word in {"benchmarks", "beitkit"} or any(re.search(rf"\b{word}\b", text) for text in texts)


def lost(text: str, folder: Path) -> list[str]:
    """What a page names that is not there; `folder` is where its links start."""
    found = [target for target in LINK.findall(text) if not (folder / target).exists()]
    spans = [span.split() for span in set(CODE.findall(BLOCK.sub("", text)))]
    for name in sorted({word for words in spans for word in words if len(words) == 1 or "/" in word} - MADE):
        if PATH.fullmatch(name):
            found += [] if is_path(name) else [name]
        elif NAME.fullmatch(called := name.partition("(")[0]):
            known = is_used(called.rpartition(".")[2]) if called.startswith("model.") or "." not in called else is_name(called)
            found += [] if known else [name]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(CODE.findall(text)) > 15
    assert lost(text, page.parent) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`train.loop.fit` in `train/loop.py`, `contracts.LoadReport`, `data/views/` and `runs/*/config.py`", []),
        ("`train.loop.fitted`", ["train.loop.fitted"]),
        ("`train.lop.fit`", ["train.lop.fit"]),
        ("`configs.data.AugmentConfig.erasing` and `erasings`", ["erasings"]),
        ("`configs.data.AugmentConfig.erasings`", ["configs.data.AugmentConfig.erasings"]),
        ("`train/lop.py`, `config.py` and `confic.py`", ["confic.py", "train/lop.py"]),
        ("`beitkit.pretrain(...)` and `beitkit.pretain(...)`", ["beitkit.pretain(...)"]),
        ("[the guide](docs/guide/data.md), [another](docs/guide/date.md)", ["docs/guide/date.md"]),
    ],
)
def test_what_is_not_there_is_found(text: str, expected: list[str]) -> None:
    assert lost(text, ROOT) == expected


def test_every_python_file_that_a_page_names_is_there() -> None:
    pages = [
        page
        for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"))
        if page.name != "method.md"
    ]
    lost = {
        f"{page.name}: {name}" for page in pages for name in FILE.findall(page.read_text(encoding="utf-8")) if not is_path(name)
    }
    assert lost == set()


def test_the_floors_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    checked = [layer.replace("beitkit.", "").split(" | ") for layer in contracts[0]["layers"]]
    table = PAGES[0].read_text(encoding="utf-8").partition("| floor |")[2].partition("\n\n")[0]
    assert [CODE.findall(line.split("|")[1]) for line in table.splitlines()[2:]] == checked
