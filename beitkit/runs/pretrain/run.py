"""`beitkit pretrain`: predict the visual tokens of masked patches, on unlabeled images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from beitkit.configs.train import resolved
from beitkit.contracts import Batch
from beitkit.data.stream import evaluation_stream, with_limit_on_broken
from beitkit.evaluation.masked import MaskedAccuracy, MaskedError
from beitkit.interop.formats.native import save_native
from beitkit.interop.load import load
from beitkit.nn.models import MaskedImageModel
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.report import explanation, filled_columns, mask_of, previewed_batch, targets_of, write_report
from beitkit.runs.pretrain.setup import Setup
from beitkit.runs.pretrain.tokens import begun_cache, cached_tokens, described, raw_batches, saved_time
from beitkit.runs.training.reader import blocks_of
from beitkit.runs.training.speed import accelerate
from beitkit.system import quoted
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal, WaitMeter
from beitkit.train.loop import Best, fit
from beitkit.train.machine.runtime import Runtime, start_runtime
from beitkit.train.optim import layered_groups
from beitkit.train.schedule import Schedule, make_schedule

DEFAULT_EPOCHS = 300
"""Length of the paper's ablations; its main runs took 800 epochs of 1.28 million images."""


def run(config: PretrainRun) -> Path:
    """Pre-train or continue; returns the run folder, which `beitkit.load` reads."""
    runtime = start_runtime(config.machine, config.speed.sharding)
    config = replace(config, loop=config.loop.shared_by(runtime.world_size))
    setup = Setup.of(config)
    folder = RunFolder(config.out, "pretrain", config, runtime.processes)
    journal = Journal(folder.journal, is_main=runtime.is_main)
    if folder.is_finished():
        journal.say(f"{folder.path} holds this run, finished; its report.html stays as it is")
        return folder.path
    folder.pin(**setup.inputs())
    encoder = setup.encoder(runtime, begun_cache(setup, folder))
    cached = cached_tokens(setup, encoder, folder, runtime)
    schedule = make_schedule(config.train, config.loop, config.optim, len(setup.files), default_epochs=DEFAULT_EPOCHS)
    torch.manual_seed(config.train.seed)
    objective = setup.objective()
    journal.say(_announcement(setup, objective.model, schedule, runtime) + accelerate(objective, config.speed, runtime, schedule))
    if encoder is not None and (how := encoder.describe()):
        journal.say(how)
    if cached is not None:
        journal.say(described(cached.cache))
    dataset, fixed = setup.dataset(), setup.evaluation_dataset()
    waited = WaitMeter()
    first_step = 0

    def batches(start: int) -> Iterator[Batch]:
        nonlocal first_step
        first_step = start * runtime.world_size // resolved(config.loop.accumulate)
        stream = raw_batches(setup, start, cached, runtime)
        stream = with_limit_on_broken(stream, dataset, config.read.max_broken, folder.note_broken, folder.broken_list)
        return setup.prepared(waited.metered(stream), runtime.device, encoder, cached)

    def fixed_batches() -> Iterator[Batch]:
        stream = evaluation_stream(fixed, resolved(config.train.batch_size), workers=0)
        return setup.prepared(stream, runtime.device, encoder)

    def predict(images: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        with runtime.precision():
            return objective.model.predict(images, mask, at)

    if setup.tokenizer is None:
        metric = "explained"
        evaluator = MaskedError(predict, fixed_batches, setup.model.backbone.patch, setup.recover_all)
    else:
        metric = "accuracy"
        evaluator = MaskedAccuracy(predict, fixed_batches, setup.recover_all)
    try:
        fit(
            objective,
            batches,
            layered_groups(objective.model, objective.model, config.optim),
            schedule=schedule,
            loop=config.loop,
            optim=config.optim,
            runtime=runtime,
            journal=journal,
            checkpoints=folder.checkpoints,
            waited=waited,
            evaluators=[evaluator],
            best=Best(f"{evaluator.name}/{metric}", lambda: save_native(objective.model, folder.best)),
            units=blocks_of(objective),
        )
    finally:
        if cached is not None:
            cached.cache.flush()
    if runtime.is_main:
        saved = None if cached is None else saved_time(cached, setup, first_step)
        if saved is not None:
            journal.record("note", schedule.steps, text=saved)
            journal.say(saved)
        write_report(folder, setup, objective.model, encoder, runtime, saved)
        save_native(objective.model.cpu(), folder.path)
    runtime.processes.barrier()
    journal.say(
        f"done: {folder.path} (report.html shows it). Next: beitkit probe LABELED --model {quoted(folder.path)}, "
        f"or beitkit finetune LABELED --model {quoted(folder.path)} --out ..."
    )
    return folder.path


def previewed(config: PretrainRun) -> tuple[dict[str, Tensor], str]:
    """Image columns of a finished run (original, masked, what it fills in), and a sentence on what they are."""
    setup = Setup.of(config)
    model = load(config.out)
    assert isinstance(model, MaskedImageModel)
    return filled_columns(setup, model, previewed_batch(setup)), explanation(setup)


def _announcement(setup: Setup, model: MaskedImageModel, schedule: Schedule, runtime: Runtime) -> str:
    config = setup.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    recipe = "" if config.recipe is None else f" by the recipe {config.recipe}"
    return (
        f"pre-training{recipe}: {config.size}/{config.patch} at {config.image_size} ({parameters / 1e6:.1f} M parameters), "
        f"mask {mask_of(setup)}, targets {targets_of(setup)}; "
        f"{len(setup.files)} images, {schedule.steps} steps of {schedule.images_per_step}, warm-up {schedule.warmup}, lr "
        f"{schedule.lr:.3g} ({config.train.lr:g} at {config.optim.lr_batch}, {config.optim.lr_scaling}); {runtime.describe()}"
    )
