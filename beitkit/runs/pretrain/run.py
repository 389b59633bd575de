"""`beitkit pretrain`: predict the visual tokens of masked patches, on unlabeled images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from beitkit.command.following import command
from beitkit.configs.train import resolved
from beitkit.contracts import WHOLE, Batch, Evaluator, Share
from beitkit.data.stream import evaluation_stream, training_stream, with_limit_on_broken
from beitkit.data.tokens.stage import CachedTokens
from beitkit.data.transfer import pinned
from beitkit.evaluation.masked import MaskedAccuracy, MaskedError
from beitkit.interop.load import load
from beitkit.nn.models import MaskedImageModel
from beitkit.planning.workload import Workload
from beitkit.runs.pretrain.choose import DEFAULT_EPOCHS
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.init import StartRecord, begin
from beitkit.runs.pretrain.judged import MASKED, PROBED, Judgment, labeled_images, probe_of
from beitkit.runs.pretrain.report import (
    SHOWN_IMAGES,
    facts_of,
    mask_of,
    network_words,
    strip_of,
    targets_of,
    what_it_fills_in,
    write_report,
)
from beitkit.runs.pretrain.setup import Setup, measured_head
from beitkit.runs.pretrain.tokens import begun_cache, cached_tokens, described, raw_batches, saved_time
from beitkit.runs.training.forecast import forecast
from beitkit.runs.training.live import renewing
from beitkit.runs.training.own import NONE, OwnParts
from beitkit.runs.training.session import Session, start_run
from beitkit.runs.training.speed import Trial, accelerate
from beitkit.runs.training.start import Start
from beitkit.tokenizers.frozen import Encoder
from beitkit.tokenizers.own import OwnTokenizer
from beitkit.train.loop import fit
from beitkit.train.machine.runtime import Runtime
from beitkit.train.optim import delayed
from beitkit.train.schedule import Schedule


def run(config: PretrainRun, own: OwnParts = NONE) -> Path:
    """Pre-train or continue; returns the run folder, which `beitkit.load` reads.

    `own` are the objects that the config describes.
    """
    config, runtime = start_run(config, config.speed.sharding)
    setup = Setup.of(config, own, runtime.device)
    config, labeled = setup.config, labeled_images(config)
    inputs = setup.inputs() | ({} if labeled is None else {"labeled pictures": labeled.digest})
    session = Session.begin("pretrain", config, runtime, inputs, files=setup.files, default_epochs=DEFAULT_EPOCHS)
    if session is None:
        return config.out
    folder, schedule, reading, waited = session.folder, session.training.schedule, session.reading, session.training.waited
    encoder = setup.encoder(runtime, begun_cache(setup, folder))
    cached = cached_tokens(setup, encoder, folder, runtime)
    dataset, fixed = setup.dataset(), setup.dataset(is_evaluated=True)

    def fixed_batches(share: Share = WHOLE) -> Iterator[Batch]:
        return setup.prepared(evaluation_stream(fixed, reading.batch_size, share=share), runtime.device, encoder)

    beginning: StartRecord | None = None

    def initialize() -> MaskedImageModel:
        nonlocal beginning
        network = setup.initialize()
        if setup.origin is not None:
            measured = measured_head(setup, network, runtime, fixed_batches)
            beginning = begin(setup.origin, network, config, folder, schedule.steps, measured)
        return network

    start = Start.of(initialize, config)
    model, objective, groups = start.model, setup.objective(start.model), start.groups
    session.describe(model)
    if beginning is not None:
        groups = delayed(groups, model, beginning.fresh, beginning.head_steps)
    workload = _workload(setup)
    accelerated = accelerate(
        objective,
        config.speed,
        runtime,
        schedule,
        folder=folder,
        trial=Trial(workload, resolved(config.train.batch_size)),
        is_static=config.mask.kind != "official" or setup.recover_all,  # that hides more of one image than of another
    )
    for line in setup.notes:
        session.say(line)
    for name, told in setup.checked:
        session.say(f"{name.lower()} {told}")
    session.say(_announcement(setup, model, schedule, runtime) + accelerated + start.describe())
    if beginning is not None and model.load_report is not None:
        session.say(model.load_report.summary())
        session.say(beginning.head)
    if (how_long := _forecast(setup, workload, schedule, runtime, cached)) is not None:
        session.say(how_long)
    if encoder is not None and (how := encoder.describe()):
        session.say(how)
    if cached is not None:
        session.say(described(cached.cache))
    session.say_held(dataset)
    first_step = 0

    def batches(first: int) -> Iterator[Batch]:
        nonlocal first_step
        first_step = first * runtime.world_size // resolved(config.loop.accumulate)
        stream = raw_batches(setup, dataset, first, cached, runtime)
        stream = with_limit_on_broken(stream, dataset, reading.max_broken, reading.report, reading.list_file)
        return setup.prepared(waited.metered(pinned(stream, runtime.device)), runtime.device, encoder, cached)

    predict = runtime.precision()(model.predict)
    if setup.tokenizer is None:
        metric = "explained"
        evaluators: list[Evaluator] = [MaskedError(predict, fixed_batches, setup.model.backbone.patch, setup.recover_all)]
    else:
        metric = "accuracy"
        evaluators = [MaskedAccuracy(predict, fixed_batches, setup.recover_all)]
    if labeled is not None:
        evaluators.append(probe_of(model, labeled, reading, runtime))
    best = session.best(f"{evaluators[0].name}/{metric}", model)
    if beginning is not None:
        judge = MASKED if labeled is None else PROBED
        best = session.best(judge, model, is_loss=judge == MASKED)
    also_at = () if beginning is None else (0, beginning.head_steps)
    strip = strip_of(setup, model, folder, fixed_batches)
    renewed = renewing(session.training, "Pre-training", facts_of(setup, encoder, runtime), strip)
    try:
        fit(objective, batches, groups, renewed, evaluators, best, also_at)
    finally:
        if cached is not None:
            cached.cache.flush()
    if runtime.is_main:
        saved = None if cached is None else saved_time(cached, setup, first_step)
        if saved is not None:
            session.training.journal.record("note", schedule.steps, text=saved)
            session.say(saved)
        outcome = None
        if beginning is not None:
            outcome = Judgment.of(folder.journal, beginning, labeled)
            folder.write_json("result.json", outcome.as_json() | {"init": str(config.init)})
            model = session.best_kept(model)
        strip = strip_of(setup, model.to(runtime.device), folder, fixed_batches)
        session.say_found(write_report(folder, setup, model, encoder, runtime, saved, outcome, strip), config)
        if outcome is not None:
            session.say(outcome.sentence())
    session.finish(model, command("probe", config.labels or "LABELED", model=config.out))
    return config.out


def previewed(config: PretrainRun) -> tuple[dict[str, Tensor], str]:
    """Image columns of a finished run (original, masked, what it fills in), and a sentence on what they are."""
    setup, model = Setup.of(config), load(config.out)
    assert isinstance(model, MaskedImageModel)
    assert not isinstance(setup.tokenizer, OwnTokenizer)
    encoder = None if setup.tokenizer is None else Encoder.laid_out(setup.tokenizer.cpu())
    batch = next(setup.prepared(training_stream(setup.dataset(), SHOWN_IMAGES), torch.device("cpu"), encoder))
    return what_it_fills_in(setup, model, batch)


def _workload(setup: Setup) -> Workload:
    """The arithmetic of the run."""
    tokenizer = None if setup.tokenizer is None else setup.tokenizer.config
    return Workload(network=setup.model, tokenizer=tokenizer, predicted=setup.draw_mask.count)


def _forecast(setup: Setup, workload: Workload, schedule: Schedule, runtime: Runtime, cached: CachedTokens | None) -> str | None:
    """How long it will take; the tokens of stored views are computed once."""
    shown_each = schedule.steps / schedule.steps_per_epoch
    tokenized = 1.0 if cached is None else min(1.0, cached.cache.key.views / shown_each)
    return forecast(
        workload, schedule, resolved(setup.config.train.batch_size), tokenized, runtime, recompute=setup.config.speed.recompute
    )


def _announcement(setup: Setup, model: MaskedImageModel, schedule: Schedule, runtime: Runtime) -> str:
    config, lr = setup.config, resolved(setup.config.train.lr)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    recipe = "" if config.recipe is None else f" by the recipe {config.recipe}"
    origin = "" if config.init is None else f" from {config.init}"
    return (
        f"pre-training{recipe}{origin}: {network_words(setup)} ({parameters / 1e6:.1f} M parameters), "
        f"mask {mask_of(setup)}, targets {targets_of(setup)}; "
        f"{len(setup.files)} images, {schedule.steps} steps of {schedule.images_per_step}, warm-up {schedule.warmup}, lr "
        f"{schedule.lr:.3g} ({lr:g} at {config.optim.lr_batch}, {config.optim.lr_scaling}); {runtime.describe()}"
    )
