"""Peak memory against tensors of a known size."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEGABYTE = 10**6
MEASURED = """
import torch
from benchmarks.compare.memory import peak_bytes
from benchmarks.compare.turns import Candidate

def tensor(megabytes):
    return torch.ones(megabytes * 10**6, dtype=torch.uint8)

def prepare():
    tensor(400)  # gone again before the first step
    kept = tensor(100)
    return lambda: kept + torch.ones_like(kept)  # two more for a moment

print(peak_bytes(Candidate("tensors", "", prepare), torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_the_peak_is_what_steps_hold_at_once_and_not_what_making_them_took() -> None:
    # In a process of its own, as the bench has it: this one may keep freed memory that other tests took.
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert 290 * MEGABYTE < int(done.stdout) < 340 * MEGABYTE
