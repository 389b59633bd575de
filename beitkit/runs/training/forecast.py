"""How long a run will take on this machine, said before its first step."""

from __future__ import annotations

from dataclasses import replace

import torch

from beitkit.configs.model import SIZES, MaskedImageModelConfig
from beitkit.planning.estimate import Length, operations, step_seconds
from beitkit.planning.rates import glance
from beitkit.planning.workload import Workload
from beitkit.train.journal import duration
from beitkit.train.machine.runtime import Runtime
from beitkit.train.schedule import Schedule

FORECAST_FROM = {"cpu": 2e14, "mps": 1e15}
"""By device, the operations of a run from which on it is worth some seconds to say how long it will take. On a GPU the first log
lines say it as soon."""
LONG = 86400.0
"""Seconds from which on smaller networks are named as well."""


def forecast(
    workload: Workload, schedule: Schedule, batch_size: int, tokenized: float, runtime: Runtime, *, recompute: bool = False
) -> str | None:
    """A sentence on the time of a run, and where it is days, on what smaller networks would take; None for short runs.

    Args:
        workload: the network, and the tokenizer where tokens are computed.
        schedule: how long the run is.
        batch_size: images of a forward pass.
        tokenized: share of the images shown whose tokens are computed.
        runtime: where it runs; the speed is timed there, on a few images of noise.
        recompute: whether the blocks' activations are computed again for the backward pass.
    """
    length = Length(schedule.steps, batch_size, schedule.images_per_step // batch_size, 1, tokenized, 0)
    flops = operations(workload, length, recompute=recompute).total
    if runtime.world_size > 1 or flops < FORECAST_FROM.get(runtime.kind, float("inf")):
        return None
    with torch.random.fork_rng():  # the networks that are timed draw weights
        rates = glance(workload, batch_size, runtime, recompute=recompute)
    step = step_seconds(workload, length, rates, recompute=recompute, workers=1, exchanged=0.0)
    seconds = step.total * length.steps
    said = (
        f"about {duration(seconds)} on this machine: {schedule.images_per_step / step.total:.3g} images/s, timed on a few images "
        "without reading them"
    )
    if seconds < LONG:
        return said
    smaller = [f"`size='{name}'` {duration(seconds * share)}" for name, share in _shares(workload, length, flops, recompute)]
    others = f"By their operations, smaller networks would take: {', '.join(smaller)}. " if smaller else ""
    return f"{said}. {others}Fewer `epochs` or a smaller `image_size` shorten it too; Ctrl-C stops"


def _shares(workload: Workload, length: Length, flops: int, recompute: bool) -> list[tuple[str, float]]:
    """The published sizes that need fewer operations in this run, and the share of them, the largest first."""
    assert isinstance(workload.network, MaskedImageModelConfig)
    found = []
    for name, size in SIZES.items():
        backbone = replace(workload.network.backbone, width=size.width, depth=size.depth, heads=size.heads, hidden=size.hidden)
        smaller = replace(workload, network=replace(workload.network, backbone=backbone, cls_branch=None))
        share = operations(smaller, length, recompute=recompute).total / flops
        if share < 0.9:
            found.append((name, share))
    return found[::-1]
