"""How much memory a contestant takes at most, in a process in which it is alone."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

import torch

from beitkit.measuring.turns import WARM_UP_STEPS, Contestant

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(contestant: Contestant, device: torch.device) -> int | None:
    """Most memory during some steps: allocated on a GPU, or resident on Linux above what it was before; None elsewhere.

    What making the contestant takes does not count (reading a checkpoint holds its weights several times). The peak is not
    `ru_maxrss`, which a new process inherits from the one that started it.
    """
    if device.type == "cuda":
        step = contestant.prepare()
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM_UP_STEPS):
            step()
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    before = _kilobytes("VmRSS")
    step = contestant.prepare()
    gc.collect()
    RESET.write_text("5")  # the high-water mark falls to what is resident now (man 5 proc)
    for _ in range(WARM_UP_STEPS):
        step()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", STATUS.read_text(), flags=re.MULTILINE)
    assert found, f"{STATUS} has no {key}"
    return int(found[1])
