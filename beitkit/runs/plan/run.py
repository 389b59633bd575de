"""`beitkit plan`: time, memory and FLOPs of a run before it starts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import count, product
from typing import Any

import torch

from beitkit.configs.gpus import GPUS
from beitkit.configs.train import MachineConfig
from beitkit.contracts import autocast_type, precision_name
from beitkit.data.decoding.reading import readable_image
from beitkit.data.sources.find import find_images
from beitkit.data.survey import preprocessing_for, survey
from beitkit.data.views.image import PretrainView
from beitkit.data.workers import default_workers
from beitkit.errors import UserError
from beitkit.planning.estimate import evaluation_seconds, exchange_seconds, operations, step_seconds
from beitkit.planning.gpu import Computed, computed
from beitkit.planning.memory import Memory, plan_memory
from beitkit.planning.rates import Given, Measured, given_rates, measure
from beitkit.runs.plan.config import PlanRun
from beitkit.runs.plan.subject import Subject, subject_of
from beitkit.runs.plan.table import GIB, Estimate, print_estimate
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.system import resident_bytes
from beitkit.train.machine.runtime import Runtime, start_runtime


def run(config: PlanRun) -> Estimate:
    """Print the plan; returns it."""
    subject = subject_of(config)
    precision = "bfloat16" if config.precision == "auto" else config.precision
    rates: Measured | Given | Computed | None = given_rates(config.rates, config.tflops, config.share, precision, subject.verb)
    process, workers = 0, config.workers
    limit = None if config.memory is None else round(config.memory * GIB)
    if config.device is not None:
        # As `speed.compile` chooses for long runs on GPUs.
        form = "objective" if config.gpus == 1 and subject.verb != "segment" else "blocks"
        rates = computed(subject.workload, subject.length.batch_size, config.device, form, recompute=config.recompute)
        limit = GPUS[config.device].memory if limit is None else limit
    if rates is None:
        runtime = start_runtime(MachineConfig(precision=config.precision, threads=config.threads))
        precision = precision_name(runtime.autocast)
        process = (resident_bytes() or 0) if runtime.device.type == "cpu" else 0
        read = _reader(config, subject)
        rates = measure(subject.workload, subject.length.batch_size, runtime, read, recompute=config.recompute)
        limit = _memory_here(runtime) if limit is None else limit
        workers = default_workers() if workers < 0 else workers
        device = runtime.describe()
    else:
        device = rates.device
    autocast = autocast_type(precision)

    def memory(batch_size: int, *, recompute: bool, is_sharded: bool) -> Memory:
        return plan_memory(
            subject.workload,
            batch_size,
            own_accumulation_steps=subject.length.accumulation_steps // config.gpus * (subject.length.batch_size // batch_size),
            autocast=autocast,
            recompute=recompute,
            is_averaged=subject.is_averaged,
            devices=config.gpus,
            is_sharded=is_sharded,
            process=process,
            surplus=rates.allocator if isinstance(rates, Measured) else 0.0,
        )

    is_sharded = config.sharding == "full"
    held = memory(subject.length.batch_size, recompute=config.recompute, is_sharded=is_sharded)
    bandwidth = None if config.bandwidth is None else config.bandwidth * 1e9
    exchanged = exchange_seconds(subject.workload, subject.length, bandwidth, is_sharded=is_sharded)
    step = step_seconds(
        subject.workload, subject.length, rates, recompute=config.recompute, workers=max(0, workers), exchanged=exchanged
    )
    estimate = Estimate(
        config=config,
        subject=subject,
        device=device,
        precision=precision,
        rates=rates,
        operations=operations(subject.workload, subject.length, recompute=config.recompute),
        memory=held,
        limit=limit,
        step=step,
        evaluating=evaluation_seconds(subject.workload, subject.length, rates, recompute=config.recompute),
        advice=() if limit is None or held.peak <= limit else _advice(config, subject, memory, limit),
    )
    print_estimate(estimate)
    return estimate


def answer(_: PlanRun, estimate: Estimate) -> dict[str, Any]:
    """What `--json` prints."""
    return estimate.described()


def _memory_here(runtime: Runtime) -> int:
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_properties(runtime.device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reader(config: PlanRun, subject: Subject) -> Callable[[], object] | None:
    """Reads and augments one of the given images after the other, as the run would; None where none are given.

    Raises:
        UserError: another verb than pre-training, whose images are changed in more ways.
    """
    if config.image_folder is None:
        return None
    if not isinstance(subject.run, PretrainRun):
        raise UserError(f"`image_folder` times the reading of pre-training, and this plans {subject.verb}; leave it out")
    files, backbone = find_images(config.image_folder), subject.workload.network.backbone
    value_range = preprocessing_for(survey(files), subject.run.network.preprocessing, backbone.channels).value_range
    view = PretrainView(subject.run.view, backbone.image_size, subject.workload.token_size)
    numbers = count()

    def read() -> None:
        number = next(numbers)
        view(readable_image(files.path(number % len(files)), backbone.channels, value_range), random.Random(number))

    return read


def _advice(config: PlanRun, subject: Subject, memory: Callable[..., Memory], limit: int) -> tuple[str, ...]:
    """What would fit, as options to add: a smaller batch with more passes, sharding, recomputation, or all of them."""
    batch_size, accumulation_steps = subject.length.batch_size, subject.length.accumulation_steps
    is_sharded = config.sharding == "full"
    # Each way once, what the options ask for first.
    ways = dict.fromkeys(product((is_sharded, config.gpus > 1), (config.recompute, True)))
    found: list[str] = []
    for sharded, recompute in ways:
        smaller = batch_size
        while (needed := memory(smaller, recompute=recompute, is_sharded=sharded).peak) > limit and smaller % 2 == 0:
            smaller //= 2
        if needed <= limit:
            options = {
                f"--batch-size {smaller} --accumulate {accumulation_steps * (batch_size // smaller)}": smaller < batch_size,
                "--sharding full": sharded and not is_sharded,
                "--recompute": recompute and not config.recompute,
            }
            said = " ".join(option for option, is_changed in options.items() if is_changed)
            found.append(f"{said} needs {needed / GIB:.1f} GiB")
    return tuple(found)
