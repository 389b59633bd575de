"""Speed of the parts of a step: measured here in some seconds, or given for other hardware."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beitkit.errors import UserError
from beitkit.planning.steps import NoiseSteps
from beitkit.planning.surplus import allocator_surplus
from beitkit.planning.workload import Workload
from beitkit.train.machine.runtime import Runtime
from beitkit.train.step import Trainer

MEASURED_FLOPS = 3e11
"""Operations of one timed pass, at most: a second or two on a CPU."""
ROUNDS = 6
"""Times each part is run; the first time is not counted."""
BLOCKS_MORE = 3
"""Blocks by which two timed networks differ, so that a block's own time is known."""
JOBS = {"pretrain": "pretraining", "finetune": "finetuning"}
"""What `bench.json` calls the work of a verb."""


class Measured(NamedTuple):
    """Seconds, on the device that this runs on."""

    block: float
    """Of one block forward and backward, and forward again where that is how it is run, for one image."""
    rest: float
    """Of everything but the blocks forward and backward, for one image: embedding, head, loss."""
    update: float
    """Of clipping and AdamW, for one parameter; measured alone."""
    tokenizer: float
    """Of one image's tokens; 0 where nothing is tokenized."""
    reading: float | None
    """Of reading and augmenting one image on one core; None where no images were given."""
    images: int
    """In the timed passes."""
    allocator: float
    """Bytes that the allocator takes beyond a step's tensors, for each of its images; 0 on a GPU."""


class Given(NamedTuple):
    """What was said of the hardware."""

    device: str
    rate: float
    """Floating-point operations per second of a matrix product."""
    share: float
    """Of that rate, what training reaches."""
    tokenizer: float
    """Operations per second that a tokenizer reaches."""
    source: str
    """Where both are from, in words."""

    @property
    def flops_per_second(self) -> float:
        """What training reaches."""
        return self.rate * self.share


def measure(
    workload: Workload, batch_size: int, runtime: Runtime, read: Callable[[], object] | None, *, recompute: bool
) -> Measured:
    """Time the parts of a step on this machine.

    Two networks that differ in depth alone train on noise in turn; what the deeper one takes longer is its blocks'.

    Args:
        workload: what is computed.
        batch_size: images of a forward pass; fewer are timed where they would take long.
        runtime: where, and in which precision.
        read: reads and augments one image, another one each time.
        recompute: whether the blocks go forward twice.
    """
    first = workload.least_depth
    shallow, deep = workload.of_depth(first), workload.of_depth(first + BLOCKS_MORE)
    images = max(1, min(batch_size, int(MEASURED_FLOPS / deep.flops.step(recompute=recompute))))
    surplus = allocator_surplus(workload, batch_size, runtime, recompute=recompute)
    steps = [NoiseSteps(part, images, runtime, recompute=recompute, tokenizes=False) for part in (shallow, deep)]
    less, more = _medians(steps, runtime.device)
    update = _update_seconds(steps[1].trainer, runtime.device)
    del steps
    block = max(0.0, more - less - update * (deep.parameters - shallow.parameters)) / BLOCKS_MORE
    return Measured(
        block=block / images,
        rest=max(0.0, less - first * block - update * shallow.parameters) / images,
        update=update,
        tokenizer=_tokenizer_seconds(workload, batch_size, runtime),
        reading=None if read is None else _medians([read], torch.device("cpu"), rounds=16)[0],
        images=images,
        allocator=surplus,
    )


def given_rates(path: Path | None, tflops: float | None, share: float | None, precision: str, verb: str) -> Given | None:
    """What the options say about other hardware; None if they say nothing.

    Args:
        path: the bench.json of benchmarks/bench.py, of which `device`, `matrix_rate` (operations per second by precision),
            `share` (by job) and the speed of its tokenizer are read.
        tflops: a rate instead, in 1e12 operations per second.
        share: what training reaches of the rate; goes before the file's.
        precision: float32 or bfloat16.
        verb: what is planned.

    Raises:
        UserError: a file without what is needed.
    """
    if path is None:
        if tflops is None:
            return None
        assert share is not None
        return Given("the given hardware", tflops * 1e12, share, tflops * 1e12 * share, "given")
    try:
        found = json.loads(path.read_text())
        rates, shares, device = dict(found["matrix_rate"]), dict(found["share"]), str(found["device"])
        rate, tokenizer = float(rates[precision]), _tokenizer_rate(found["jobs"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"`rates` {path} should be a bench.json of benchmarks/bench.py with a matrix_rate of {precision}, and is not"
        ) from None
    job = JOBS.get(verb)
    if share is None and job not in shares:
        raise UserError(f"`rates` {path} does not say which share of the rate {verb} reaches; give it as `share`, such as 0.4")
    reached = float(shares[job]) if share is None else share
    tokenizer = tokenizer if share is None and tokenizer is not None else rate * reached
    return Given(device, rate, reached, tokenizer, f"measured, {path.name}")


def _tokenizer_rate(jobs: list[dict[str, Any]]) -> float | None:
    """Operations per second of the tokenizer in a bench; it computes in two precisions, so a share of one rate says less."""
    for one in (candidate for job in jobs for candidate in job["contestants"]):
        if one["name"] == "tokenizer":
            return float(one["images_per_second"]) * sum(one["flops_per_image"].values())
    return None


def _update_seconds(trainer: Trainer, device: torch.device) -> float:
    """Of clipping and AdamW, for one parameter."""
    parameters = list(trainer.learning.values())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        trainer.parallel.norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        trainer.optimizer.step()

    return _medians([update], device)[0] / sum(parameter.numel() for parameter in parameters)


def _tokenizer_seconds(workload: Workload, batch_size: int, runtime: Runtime) -> float:
    if workload.tokenizer is None:
        return 0.0
    count = max(1, min(batch_size, int(MEASURED_FLOPS / workload.tokenizer_flops)))
    encoder, images = workload.encoder(runtime.device, runtime.autocast), workload.token_images(count, runtime.device)
    return _medians([lambda: encoder(images)], runtime.device)[0] / count


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
