"""Peak memory against tensors of a known size."""

from __future__ import annotations

import sys

import pytest
import torch

from beitkit.measuring.memory import peak_bytes
from beitkit.measuring.turns import Contestant, Step

MEGABYTE = 10**6


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_the_peak_is_what_steps_hold_at_once_and_not_what_making_them_took() -> None:
    def prepare() -> Step:
        torch.ones(400 * MEGABYTE, dtype=torch.uint8)  # gone again before the first step
        kept = torch.ones(100 * MEGABYTE, dtype=torch.uint8)
        return lambda: kept + torch.ones_like(kept)  # two more for a moment

    peak = peak_bytes(Contestant("tensors", "", prepare), torch.device("cpu"))
    assert peak is not None
    assert 290 * MEGABYTE < peak < 340 * MEGABYTE
