"""How much memory a contestant takes at most, in a process in which it is alone."""

from __future__ import annotations

import gc

import torch

from beitkit.measuring.turns import WARM_UP_STEPS, Contestant
from beitkit.system import forget_peak_resident_bytes, peak_resident_bytes, resident_bytes


def peak_bytes(contestant: Contestant, device: torch.device) -> int | None:
    """Most memory during some steps: allocated on a GPU, or resident on Linux above what it was before; None elsewhere.

    What making the contestant takes does not count (reading a checkpoint holds its weights several times).
    """
    if device.type == "cuda":
        step = contestant.prepare()
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM_UP_STEPS):
            step()
        return torch.cuda.max_memory_allocated(device)
    before = resident_bytes()
    if device.type != "cpu" or before is None:
        return None
    step = contestant.prepare()
    gc.collect()
    forget_peak_resident_bytes()
    for _ in range(WARM_UP_STEPS):
        step()
    peak = peak_resident_bytes()
    return None if peak is None else peak - before
