"""A few cases of each sweep; `tests/faults/sweep.py` goes through hundreds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="torchrun's processes are found in /proc")
@pytest.mark.parametrize(
    ("kind", "count"),
    [("kills", 3), ("signals", 3), ("ranks", 1), ("requeue", 1), ("flips", 200), ("odd", 60), ("malice", 60)],
)
def test_all_end_well(kind: str, count: int) -> None:
    """In a process of its own, which has no threads: cases are forked from it."""
    command = [sys.executable, HERE / "sweep.py", kind, "--count", str(count), "--seed", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{kind}: {count} of {count}\n"
