"""Speed of the parts of a step: measured here in some seconds, or given for other hardware.

Memory is measured on the same steps. On a CPU most tensors are on the heap, whose holes stay with the process. glibc could return
every large tensor at once (`MALLOC_MMAP_THRESHOLD_`), but then the kernel zeroes the same memory again in every step
(docs/guide/plan.md). The size of the holes depends on the order of allocations, so it is measured on real steps against their
trace; for a slow network, on two with fewer blocks.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beitkit.configs.train import OptimConfig
from beitkit.contracts import Batch
from beitkit.data.stream import tokenized
from beitkit.errors import UserError
from beitkit.files import read_json
from beitkit.nn.blocks import set_recompute
from beitkit.planning.memory import trace_step
from beitkit.planning.workload import Workload
from beitkit.system import peak_resident_bytes, reset_peak_memory, resident_bytes, trim_heap
from beitkit.train.machine.runtime import Runtime, StopRequest
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import Schedule
from beitkit.train.step import StepResult, Trainer

MEASURED_FLOPS = 3e11
"""Operations of one timed pass, at most: a second or two on a CPU."""
GLANCE_FLOPS = 3e10
"""The same for an estimate before a run, which nobody should wait for."""
ROUNDS = 6
"""Times each part is run; the first time is not counted."""
BLOCKS_MORE = 3
"""Blocks by which two timed networks differ, so that a block's own time is known."""
LENGTH = 1_000_000
"""Steps of the schedule whose beginning is run."""
RATE = 1e-5
"""So low that training on noise stays finite."""
SURPLUS_STEPS = 3
"""Steps after which little is added."""
SURPLUS_FLOPS = 5e11
"""Operations of one of these steps, at most; the whole network makes them if it can."""
SURPLUS_BLOCKS = 1, 5
"""Blocks beyond the fewest there can be in the two networks that stand for a larger one: the holes grow with the depth, in
proportion but for a constant."""
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
    allocator: float
    """Bytes that the allocator takes beyond a step's tensors, for each of its images; 0 on a GPU."""


class Given(NamedTuple):
    """What was said of the hardware."""

    device: str
    flops_per_second: float
    """Floating-point operations that training reaches."""
    tokenizer: float
    """Operations per second that a tokenizer reaches."""
    source: str
    """Where both are from, in words."""


def measure(
    workload: Workload, batch_size: int, runtime: Runtime, read: Callable[[], object] | None, *, recompute: bool
) -> Measured:
    """Time the parts of a step on this machine.

    Two networks that differ in depth alone train on noise in turn; what the deeper one takes longer is its blocks'.

    Fewer than `batch_size` images are timed where they would take long; `read` reads and augments one image, another one each
    time.
    """
    surplus = allocator_surplus(workload, batch_size, runtime, recompute=recompute)
    block, rest, update = _network_seconds(workload, batch_size, runtime, recompute=recompute, flops=MEASURED_FLOPS)
    return Measured(
        block=block,
        rest=rest,
        update=update,
        tokenizer=_tokenizer_seconds(workload, batch_size, runtime, MEASURED_FLOPS),
        reading=None if read is None else _medians([read], torch.device("cpu"), rounds=16)[0],
        allocator=surplus,
    )


def glance(workload: Workload, batch_size: int, runtime: Runtime, *, recompute: bool) -> Measured:
    """`measure` in a second or two: of fewer images, without the reading and the allocator."""
    block, rest, update = _network_seconds(workload, batch_size, runtime, recompute=recompute, flops=GLANCE_FLOPS)
    tokenizer = _tokenizer_seconds(workload, batch_size, runtime, GLANCE_FLOPS)
    return Measured(block=block, rest=rest, update=update, tokenizer=tokenizer, reading=None, allocator=0.0)


def given_rates(path: Path | None, tflops: float | None, share: float | None, precision: str, verb: str) -> Given | None:
    """What the options say about other hardware; None if they say nothing.

    Args:
        path: the bench.json of benchmarks/bench.py, of which `device`, `matrix_rate` (operations per second by precision),
            `share` (by job) and the speed of its tokenizer are read.
        tflops: a rate instead, in 1e12 operations per second.
        share: what training reaches of the rate; goes before the file's.

    Raises:
        UserError: a file without what is needed.
    """
    if path is None:
        if tflops is None:
            return None
        assert share is not None
        reached = tflops * 1e12 * share
        return Given("the given hardware", reached, reached, "given")
    try:
        found = read_json(path)
        rates, shares, device = dict(found["matrix_rate"]), dict(found["share"]), str(found["device"])
        rate, tokenizer = float(rates[precision]), _tokenizer_rate(found["jobs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"`rates` {path} should be a bench.json of benchmarks/bench.py with a matrix_rate of {precision}, and is not"
        ) from None
    job = JOBS.get(verb)
    if share is None and job not in shares:
        raise UserError(f"`rates` {path} does not say which share of the rate {verb} reaches; give it as `share`, such as 0.4")
    reached = rate * (float(shares[job]) if share is None else share)
    return Given(device, reached, tokenizer if share is None and tokenizer is not None else reached, f"measured, {path.name}")


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


def _network_seconds(
    workload: Workload, batch_size: int, runtime: Runtime, *, recompute: bool, flops: float
) -> tuple[float, float, float]:
    """`block`, `rest` and `update` of `Measured`."""
    first = workload.least_depth
    shallow, deep = workload.of_depth(first), workload.of_depth(first + BLOCKS_MORE)
    images = max(1, min(batch_size, int(flops / deep.flops.step(recompute=recompute))))
    steps = [NoiseSteps(part, images, runtime, recompute=recompute, tokenizes=False) for part in (shallow, deep)]
    less, more = _medians(steps, runtime.device)
    update = _update_seconds(steps[1].trainer, runtime.device)
    block = max(0.0, more - less - update * (deep.parameters - shallow.parameters)) / BLOCKS_MORE
    return block / images, max(0.0, less - first * block - update * shallow.parameters) / images, update


def _tokenizer_seconds(workload: Workload, batch_size: int, runtime: Runtime, flops: float) -> float:
    if workload.tokenizer is None:
        return 0.0
    count = max(1, min(batch_size, int(flops / workload.tokenizer_flops)))
    encoder, images = workload.encoder(runtime.device, runtime.autocast), workload.token_images(count, runtime.device)
    return _medians([lambda: encoder(images)], runtime.device)[0] / count


def _medians(parts: Sequence[Callable[[], object]], device: torch.device, rounds: int = ROUNDS) -> list[float]:
    """Seconds of each part; they take turns, so that what else the machine does hits all of them."""
    seconds: list[list[float]] = [[] for _ in parts]
    for _ in range(rounds):
        for place, part in enumerate(parts):
            start = time.perf_counter()
            part()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds[place].append(time.perf_counter() - start)
    return [statistics.median(column[1:]) for column in seconds]


class NoiseSteps:
    """A fresh network and what trains it; every call makes a step on other noise."""

    def __init__(self, workload: Workload, images: int, runtime: Runtime, *, recompute: bool, tokenizes: bool) -> None:
        """Steps of this many images; `tokenizes` computes their tokens each time, where there is a tokenizer."""
        objective = workload.objective().train()
        set_recompute(objective, recompute)
        optim = OptimConfig(warmup_epochs=0.0)
        schedule = Schedule(LENGTH, 0, images, LENGTH, RATE, RATE, seed=0)
        groups = parameter_groups(objective, optim.weight_decay)
        self.trainer = Trainer(objective, groups, schedule=schedule, optim=optim, runtime=runtime, accumulation_steps=1)
        stream: Iterator[Batch] = (workload.batch(images, runtime.device) for _ in itertools.count())
        if tokenizes and workload.tokenizer is not None:
            shown = (batch | {"token_images": workload.token_images(images, runtime.device)} for batch in stream)
            stream = tokenized(shown, workload.encoder(runtime.device, runtime.autocast), workload.grid)
        self._stream = stream
        self._numbers, self._stop = itertools.count(), StopRequest()

    def __call__(self) -> StepResult:
        """The next step."""
        trainer, done = self.trainer, next(self._numbers)
        losses = trainer.forward_backward(self._stream, done)
        return trainer.update(losses, trainer.clip(), done, self._stop)


def allocator_surplus(workload: Workload, batch_size: int, runtime: Runtime, *, recompute: bool) -> float:
    """Bytes beyond the traced ones that training this workload takes, for each image; 0 where that cannot be known."""
    if runtime.device.type != "cpu" or resident_bytes() is None:
        return 0.0
    if batch_size * workload.flops.step(recompute=recompute) <= SURPLUS_FLOPS:
        return _surplus(workload, batch_size, runtime, recompute=recompute) / batch_size
    shallow, deep = (workload.of_depth(workload.least_depth + more) for more in SURPLUS_BLOCKS)
    images = max(1, min(batch_size, int(SURPLUS_FLOPS / deep.flops.step(recompute=recompute))))
    less, more = (_surplus(part, images, runtime, recompute=recompute) for part in (shallow, deep))
    each = max(0, more - less) / (SURPLUS_BLOCKS[1] - SURPLUS_BLOCKS[0])
    return (less + each * (workload.network.backbone.depth - shallow.network.backbone.depth)) / images


def _surplus(workload: Workload, images: int, runtime: Runtime, *, recompute: bool) -> int:
    """Bytes beyond the traced ones that some steps of this workload take."""
    traced = trace_step(workload, images, accumulation_steps=1, autocast=runtime.autocast, recompute=recompute)
    trim_heap()  # else the steps would take what was here before them
    reset_peak_memory()
    before = resident_bytes()
    step = NoiseSteps(workload, images, runtime, recompute=recompute, tokenizes=True)
    for _ in range(SURPLUS_STEPS):
        step()
    held = peak_resident_bytes()
    assert before is not None
    assert held is not None
    return max(0, held - before - traced.peak)
