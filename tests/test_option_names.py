"""Messages below the command line name fields, not options: what a Python caller can set (the command line translates)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from beitkit.verbs import VERBS

PACKAGE = Path(__file__).parents[1] / "beitkit"
ABOVE = ("runs", "cli.py", "command", "verbs.py")
"""What knows the command line; of `runs/` only the configs are looked at, which say what a Python caller can set.

Those may name verbs: each belongs to one.
"""
OTHERS = {
    "--always",
    "--dirty",
    "--no-optional-locks",
    "--porcelain",
    "--untracked-files",
    "--gpus-per-task",
    "--kill-on-bad-exit",
}
"""Options of other programs: of git and of srun."""
STORED = {"beitkit index"}
"""Whole strings that a file holds: a key in an index's metadata."""

# A string of an f-string that ends with the dashes, or with the program, goes on with a name.
OPTION = re.compile(r"(?<![\w-])--(?:[a-z][\w.-]*|$)")
COMMAND = re.compile(rf"\bbeitkit (?:(?:{'|'.join(VERBS)})\b|$)")
POSITIONAL = re.compile(r"\b(?:IMAGES|INPUTS)\b")


def below() -> list[Path]:
    """The modules that must not know the command line."""
    found = sorted(PACKAGE.rglob("*.py"))
    return [path for path in found if path.relative_to(PACKAGE).parts[0] not in ABOVE or path.match("runs/*/config.py")]


def named(source: str, patterns: tuple[re.Pattern[str], ...] = (OPTION, COMMAND, POSITIONAL)) -> Iterator[str]:
    """Options, commands and positional arguments in the strings of a module, docstrings included, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in STORED:
            for pattern in patterns:
                yield from (f"{node.lineno}: {name}" for name in pattern.findall(node.value) if name not in OTHERS)


def test_no_option_is_named_below_the_command_line() -> None:
    modules = below()
    assert len(modules) > 100
    found = [
        f"{path.relative_to(PACKAGE)}:{where}"
        for path in modules
        for where in named(
            path.read_text(encoding="utf-8"),
            (OPTION,) if path.match("runs/*/config.py") else (OPTION, COMMAND, POSITIONAL),
        )
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""raise --read.max-broken"""', ["--read.max-broken"]),
        ('f"--{name} is too large"', ["--"]),
        ('f"give {a} or --lr {b}, not --steps"', ["--lr", "--steps"]),
        ('f"make it with beitkit {verb}"', ["beitkit "]),
        ('f"{path}: first do `beitkit tokenize`"', ["beitkit tokenize"]),
        ('"IMAGES is another list"', ["IMAGES"]),
        ("x = 1  # what --lr is", []),
        ('"`read.max_broken` in beitkit.pretrain, srun --gpus-per-task, well -- and beitkit itself"', []),
    ],
)
def test_what_counts_as_a_name(source: str, found: list[str]) -> None:
    assert [where.partition(": ")[2] for where in named(source)] == found
