"""How fast the parts of a step go: measured here in some seconds, or given for hardware that is elsewhere."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from beitkit.configs.model import SegmenterConfig
from beitkit.configs.train import OptimConfig
from beitkit.errors import UserError
from beitkit.planning.surplus import allocator_factor
from beitkit.planning.workload import Workload, count_parameters
from beitkit.train.optim import make_optimizer, parameter_groups
from beitkit.train.runtime import Runtime

MEASURED_FLOPS = 3e11
"""Operations of one timed pass, at most: a second or two on a CPU."""
ROUNDS = 4
"""Times each part is run; the first time is not counted."""
BLOCKS_MORE = 3
"""Blocks by which two timed networks differ, so that a block's own time is known."""


class Measured(NamedTuple):
    """Seconds, on the device that this runs on."""

    block: float
    """Of one block forward and backward, for one picture."""
    rest: float
    """Of everything but the blocks forward and backward, for one picture: embedding, head, loss."""
    update: float
    """Of clipping and AdamW, for one parameter."""
    tokenizer: float
    """Of one picture's tokens; 0 where nothing is tokenized."""
    reading: float | None
    """Of reading and augmenting one picture on one core; None where no pictures were given."""
    pictures: int
    """In the timed passes."""
    allocator: float
    """How many times the traced bytes of a step the allocator takes; 1 on a GPU."""


class Given(NamedTuple):
    """What was said of the hardware."""

    device: str
    rate: float
    """Floating-point operations per second of a matrix product."""
    share: float
    """Of that rate, what training reaches."""
    source: str
    """Where both are from, in words."""

    @property
    def flops_per_second(self) -> float:
        """What training reaches."""
        return self.rate * self.share


def measure(workload: Workload, batch_size: int, runtime: Runtime, read: Callable[[], object] | None) -> Measured:
    """Time the parts of a step on this machine.

    Two networks that differ in depth alone train on the same noise in turn; what the deeper one takes longer is its blocks'.

    Args:
        workload: what is computed.
        batch_size: pictures of a forward pass; fewer are timed where they would take long.
        runtime: where, and in which precision.
        read: reads and augments one picture, another one each time.
    """
    first = 4 if isinstance(workload.network, SegmenterConfig) else 1  # a segmenter reads four different blocks
    shallow, deep = workload.of_depth(first), workload.of_depth(first + BLOCKS_MORE)
    pictures = max(1, min(batch_size, int(MEASURED_FLOPS / deep.flops.step(recompute=False))))
    factor = allocator_factor(deep, pictures, runtime) if runtime.device.type == "cpu" else 1.0  # before anything large
    batch = workload.batch(pictures, runtime.device)
    objectives = [part.objective().to(runtime.device).train() for part in (shallow, deep)]
    less, more = _medians([lambda o=objective: _pass(o, batch, runtime) for objective in objectives], runtime.device)
    update = _update_seconds(objectives[1], runtime.device)
    del objectives
    block = max(0.0, more - less) / BLOCKS_MORE
    return Measured(
        block=block / pictures,
        rest=max(0.0, less - first * block) / pictures,
        update=update,
        tokenizer=_tokenizer_seconds(workload, batch_size, runtime.device),
        reading=None if read is None else _medians([read], torch.device("cpu"), rounds=16)[0],
        pictures=pictures,
        allocator=factor,
    )


def given_rates(path: Path | None, tflops: float | None, share: float | None, precision: str, job: str) -> Given | None:
    """What the options say about other hardware; None if they say nothing.

    Args:
        path: JSON with `device`, `matrix_rate` (operations per second by precision) and `share` (by job), as `beitkit bench`
            writes it.
        tflops: a rate instead, in 1e12 operations per second.
        share: what training reaches of the rate; goes before the file's.
        precision: float32 or bfloat16.
        job: the verb that is planned.

    Raises:
        UserError: a file without what is needed, or a rate without a share.
    """
    if path is None:
        if tflops is None:
            return None
        assert share is not None
        return Given("the given hardware", tflops * 1e12, share, "given")
    try:
        found = json.loads(path.read_text())
        rate, shares, device = float(found["matrix_rate"][precision]), dict(found.get("share", {})), str(found["device"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--rates {path} should be JSON as beitkit bench writes it, with device and matrix_rate of {precision}, and is not"
        ) from None
    if share is None and job not in shares:
        raise UserError(f"--rates {path} does not say which share of the rate {job} reaches; give it as --share, such as 0.4")
    return Given(device, rate, float(shares[job]) if share is None else share, f"measured, {path.name}")


def _pass(objective: nn.Module, batch: dict[str, Tensor], runtime: Runtime) -> None:
    objective.zero_grad(set_to_none=True)
    with runtime.precision():
        loss = objective(batch, 0.0).total
    loss.backward()


def _update_seconds(objective: nn.Module, device: torch.device) -> float:
    """Of clipping and AdamW, for one parameter; the objective has gradients."""
    optimizer = make_optimizer(parameter_groups(objective, 0.05), OptimConfig())
    parameters = list(objective.parameters())

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, 3.0, foreach=True)
        optimizer.step()

    return _medians([update], device)[0] / count_parameters(objective)


@torch.no_grad()
def _tokenizer_seconds(workload: Workload, batch_size: int, device: torch.device) -> float:
    if workload.tokenizer is None:
        return 0.0
    pictures = max(1, min(batch_size, int(MEASURED_FLOPS / workload.tokenizer_flops)))
    tokenizer, images = workload.tokenizer_network().to(device).eval(), workload.token_images(pictures, device)
    return _medians([lambda: tokenizer.encode(images)], device)[0] / pictures


def _medians(parts: Sequence[Callable[[], object]], device: torch.device, rounds: int = ROUNDS) -> list[float]:
    """Seconds of each part; they take turns, so that what else the machine does hits all of them."""
    seconds: list[list[float]] = [[] for _ in parts]
    for _ in range(rounds):
        for place, part in enumerate(parts):
            with _timed(seconds[place], device):
                part()
    return [statistics.median(column[1:]) for column in seconds]


@contextmanager
def _timed(seconds: list[float], device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    seconds.append(time.perf_counter() - start)
