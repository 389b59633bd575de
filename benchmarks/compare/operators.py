"""Time of a step by operator, from PyTorch's profiler."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.compare.turns import WARM_UP_STEPS, Candidate

KINDS = {
    "attention": r"scaled_dot_product|flash|flex_attention|efficient_attention",
    "convolutions": r"conv",
    "matrix products": r"(^|::|_)(mm|addmm|bmm|baddbmm|linear|gemm)|_linear_pointwise|gemm|cutlass|nvjet",
    "optimizer": r"adamw|Optimizer|multi_tensor_apply",
    "data moved": r"::(copy_|cat|clone|index|_to_copy|fill_|zero_)",
}
"""Kinds of operators by their names, the first that fits; everything else is `other`."""


class Operator(NamedTuple):
    """An operator in one step."""

    name: str
    kind: str
    calls: int
    seconds: float
    """In itself, without the operators that it calls."""
    share: float
    """Of the seconds of all."""


def operators(candidate: Candidate, device: torch.device) -> list[Operator]:
    """The operators of one step after warming up, those that take longest first; by device time on a GPU, else by CPU time."""
    step = candidate.prepare()
    for _ in range(WARM_UP_STEPS):
        step()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    spent = [
        (event.key, event.count, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6)
        for event in profiler.key_averages()
    ]
    total = sum(seconds for _, _, seconds in spent)
    found = [Operator(name, kind_of(name), calls, seconds, seconds / total) for name, calls, seconds in spent if seconds]
    return sorted(found, key=lambda operator: -operator.seconds)


def kind_of(name: str) -> str:
    """The kind of an operator."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


def as_text(title: str, found: list[Operator], most: int = 25) -> str:
    """A table of the kinds, and one of the operators that take longest."""
    kinds: dict[str, float] = {}
    for operator in found:
        kinds[operator.kind] = kinds.get(operator.kind, 0.0) + operator.share
    lines = [title, "=" * len(title), f"{sum(operator.seconds for operator in found):.3f} s in operators", ""]
    lines += [f"{share:7.1%}  {kind}" for kind, share in sorted(kinds.items(), key=lambda pair: -pair[1])]
    lines += ["", "  share      self ms  calls  operator"]
    lines += [f"{one.share:7.1%}  {1e3 * one.seconds:11.3f}  {one.calls:5}  {one.name}" for one in found[:most]]
    return "\n".join(lines) + "\n"
