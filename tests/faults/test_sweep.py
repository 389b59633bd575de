"""A few cases of each sweep; `tests/faults/sweep.py` goes through hundreds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="torchrun's processes are found in /proc")
@pytest.mark.parametrize(("kind", "count"), [("kills", 3), ("signals", 3), ("ranks", 1), ("requeue", 1), ("flips", 200)])
def test_all_end_well(kind: str, count: int) -> None:
    path = Path(__file__).with_name("sweep.py")
    spec = importlib.util.spec_from_file_location("beitkit_sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    said: list[str] = []
    assert module.sweep(kind, count, seed=1, say=said.append), said
    assert said == [f"{kind}: {count} of {count}"]
