"""`python -m benchmarks.small`: a tiny race, and operations counted by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import small


@pytest.mark.parametrize("more", [[], ["--views"]])
def test_a_table_has_a_row_for_every_shape(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(small, "IMAGES", 8)
    options = ["--batch-size", "4", "--rounds", "1", "--turn", "0", "--threads", "1", *more]
    monkeypatch.setattr(sys, "argv", ["small", "--shape", "32x1/7@28", "32x1/8@32", *options])
    small.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + (10 if more else 2)
    assert len({len(row) for row in rows}) == 1


def test_operations_are_those_that_pytorch_counts() -> None:
    shape = small.Shape.read("64x2/7@28")
    network, mask = small.BareNetwork(shape), torch.zeros(1, 16, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 28, 28), mask, torch.arange(shape.num_masked)).sum().backward()
    assert shape.flops == counter.get_total_flops()
