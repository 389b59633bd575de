"""The command that measures the house runs on this checkout, and the house keeps to what it was built for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "house.py"
MOST_FILES = 13
"""Python files that a folder of the package may hold, besides `__init__.py`."""


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    table = subprocess.run([sys.executable, TOOL, ROOT], capture_output=True, text=True, check=True).stdout
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: int(value.replace(",", "")) for name, value in cells}


def test_no_folder_is_too_full(measured: dict[str, int]) -> None:
    folders: dict[Path, int] = {}
    for path in (ROOT / "beitkit").rglob("*.py"):
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): count for folder, count in folders.items() if count > MOST_FILES} == {}
    assert measured["most files in a folder"] == max(folders.values())


def test_a_verb_is_one_room_and_one_row(measured: dict[str, int]) -> None:
    assert measured["folders of one verb's options, at most"] == 1
    assert measured["lists of the verbs"] <= 3


def test_nothing_imports_upward_or_in_a_ring(measured: dict[str, int]) -> None:
    assert measured["imports of the package root from below"] == 0
    assert measured["circles of files"] == measured["circles of rooms"] == 0


def test_a_class_name_means_one_thing(measured: dict[str, int]) -> None:
    assert measured["class names used more than once"] == 0


def test_a_folder_without_the_package_is_named(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"{tmp_path} holds no package beitkit\n"


def test_what_is_counted_can_be_listed() -> None:
    listed = subprocess.run([sys.executable, TOOL, ROOT, "--where"], capture_output=True, text=True, check=True).stdout
    assert "beitkit.cli.main; beitkit.runs.pretrain.run.run; " in listed
    assert "the objective's forward" in listed
