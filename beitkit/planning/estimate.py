"""Estimate FLOPs and time of a whole run from its parts: steps, tokenizing, evaluations, data parallelism."""

from __future__ import annotations

from typing import NamedTuple

from beitkit.planning.gpu import Computed
from beitkit.planning.memory import FLOAT
from beitkit.planning.rates import Given, Measured
from beitkit.planning.workload import Workload

BACKWARD = 2
"""A backward pass takes this many times a forward pass, in operations and, near enough, in time."""


class Length(NamedTuple):
    """How long a run is, and how its steps are shared."""

    steps: int
    batch_size: int
    """Images of a forward pass."""
    accumulation_steps: int
    """Forward passes of a step, of all devices together."""
    devices: int
    tokenized: float
    """Share of the images shown whose tokens are computed."""
    judged: int
    """Images that all evaluations look at, by one device."""

    @property
    def images_per_step(self) -> int:
        """Of all devices."""
        return self.batch_size * self.accumulation_steps

    @property
    def images(self) -> int:
        """Shown in the whole run."""
        return self.steps * self.images_per_step

    @property
    def own_images(self) -> float:
        """Images of a step on one device."""
        return self.images_per_step / self.devices


class Operations(NamedTuple):
    """Floating-point operations of a whole run."""

    training: int
    tokenizing: int
    evaluating: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.training + self.tokenizing + self.evaluating


class StepSeconds(NamedTuple):
    """Seconds of one step, on every device at once."""

    network: float
    """Forward and backward."""
    tokenizer: float
    reading: float
    """What the device waits for images; 0 where reading was not timed."""
    update: float
    exchange: float
    """What devices exchange, as if nothing else were done meanwhile; 0 where no bandwidth was given."""

    @property
    def total(self) -> float:
        """One step."""
        return sum(self)


def operations(workload: Workload, length: Length, *, recompute: bool) -> Operations:
    """Of the whole run."""
    flops = workload.flops
    return Operations(
        training=length.images * flops.step(recompute=recompute),
        tokenizing=round(length.images * length.tokenized * workload.tokenizer_flops),
        evaluating=length.judged * (flops.forward + workload.tokenizer_flops),
    )


def step_seconds(
    workload: Workload,
    length: Length,
    rates: Measured | Given | Computed,
    *,
    recompute: bool,
    workers: int,
    exchanged: float,
) -> StepSeconds:
    """Of one step, the tokenizer's part averaged over the run, with `exchanged` seconds of exchange between devices.

    0 workers read in the main process, and then nothing else happens.
    """
    images = length.own_images
    if isinstance(rates, Given):
        network = images * workload.flops.step(recompute=recompute) / rates.flops_per_second
        tokenizer = images * length.tokenized * workload.tokenizer_flops / rates.tokenizer
        return StepSeconds(network, tokenizer, 0.0, 0.0, exchanged)
    if isinstance(rates, Computed):
        tokenizer = images * length.tokenized * rates.tokenizer
        return StepSeconds(images * rates.step, tokenizer, 0.0, rates.update, exchanged)
    network = images * (workload.network.backbone.depth * rates.block + rates.rest)
    tokenizer = images * length.tokenized * rates.tokenizer
    update = rates.update * workload.parameters
    computing = network + tokenizer + update
    reading = images * (rates.reading or 0.0)
    waiting = reading if workers == 0 else max(0.0, reading / workers - computing)
    return StepSeconds(network, tokenizer, waiting, update, exchanged)


def evaluation_seconds(workload: Workload, length: Length, rates: Measured | Given | Computed, *, recompute: bool) -> float:
    """Of all evaluations: forward, the tokenizer, and reading in the main process."""
    if isinstance(rates, Given):
        forward = workload.flops.forward / rates.flops_per_second
        return length.judged * (forward + workload.tokenizer_flops / rates.tokenizer)
    if isinstance(rates, Computed):
        return length.judged * (rates.forward + rates.tokenizer)
    blocks = workload.network.backbone.depth * rates.block / (1 + BACKWARD + recompute)
    forward = blocks + rates.rest / (1 + BACKWARD)
    return length.judged * (forward + rates.tokenizer + (rates.reading or 0.0))


def exchange_seconds(workload: Workload, length: Length, bandwidth: float | None, *, is_sharded: bool) -> float:
    """What a device spends on sending in a step, at `bandwidth` bytes per second; 0 for one device, or where it is not known.

    Data parallelism reduces the gradients in a ring, in which each device sends 2 (n - 1) / n of them, once a step. Full sharding
    gathers the weights twice and scatters the gradients in every pass: 3 (n - 1) / n of the bytes.
    """
    devices = length.devices
    if devices == 1 or bandwidth is None:
        return 0.0
    times = 3 * length.accumulation_steps / devices if is_sharded else 2
    return times * (devices - 1) / devices * FLOAT * workload.parameters / bandwidth
