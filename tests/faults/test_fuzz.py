"""Two seconds of damaged files for everything that reads one; `tests/faults/fuzz.py` goes on for as long as it is told to."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("beitkit_fuzz", HERE / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_two_seconds_of_damaged_files(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SLOW", float("inf"))  # a machine may be busy
    said: list[str] = []
    assert fuzz.fuzz(2.0, seed=7, say=said.append) == 0, "\n".join(said)
    assert "not handled: none" in said[-1]


def test_what_is_not_handled_is_found(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer itself: a parser that divides by what it reads is caught, and the input is the same every time."""

    def careless(path: Path) -> float:
        return 1 / (len(path.read_bytes()) % 3)

    monkeypatch.setattr(fuzz, "parsers", lambda room: {"careless": fuzz.Parser([b"12345678"], careless)})
    said: list[str] = []
    assert fuzz.fuzz(0.3, say=said.append) > 0
    assert "ZeroDivisionError" in said[0]
    assert fuzz.mutated(b"abc" * 9, random.Random("x")) == fuzz.mutated(b"abc" * 9, random.Random("x"))
