"""The planned run: config and workload, from a recipe or options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.configs.choices import curve_every
from beitkit.configs.model import SIZES, ClassifierConfig, SegmenterConfig
from beitkit.configs.parts import DEFAULT_PATCH, NetworkConfig
from beitkit.configs.tokenizer import PUBLISHED_DVAES, TokenizerConfig
from beitkit.configs.train import resolved
from beitkit.data.views.masking import masker
from beitkit.errors import UserError
from beitkit.interop.hub import is_on_hub
from beitkit.interop.kinds import numbered
from beitkit.interop.load import load_tokenizer
from beitkit.planning.estimate import Length
from beitkit.planning.workload import Workload
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.plan.config import PlanRun
from beitkit.runs.pretrain.choose import DEFAULT_EPOCHS, choose
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.setup import EVALUATED_IMAGES, network_of
from beitkit.runs.recipes.recipe import IMAGES, OUT, AnyRun
from beitkit.runs.recipes.table import recipe_named
from beitkit.runs.segment.run import AUXILIARY_CHANNELS
from beitkit.tokenizers.frozen import TRIED_IMAGES
from beitkit.train.schedule import make_schedule

CLASSES = {"finetune": 1000, "segment": 150}
"""Of ImageNet-1k and of ADE20K."""


class Subject(NamedTuple):
    """What is planned."""

    verb: str
    run: AnyRun
    workload: Workload
    length: Length
    is_averaged: bool
    """Whether a moving average of the weights is kept."""


def subject_of(config: PlanRun) -> Subject:
    """The run that is planned.

    Raises:
        UserError: a recipe that does not exist, options that are not for it, or passes that devices cannot share.
    """
    verb = "pretrain" if config.recipe is None else recipe_named(config.recipe).verb
    _check_options(config, verb)
    run = _run_of(config)
    accumulation_steps = run.loop.accumulate if config.accumulate is None else config.accumulate
    accumulation_steps = config.gpus if accumulation_steps is None else accumulation_steps
    if accumulation_steps % config.gpus:
        nearest = max(1, round(accumulation_steps / config.gpus)) * config.gpus
        raise UserError(
            f"{accumulation_steps} forward passes a step cannot be shared evenly by `gpus` {config.gpus}; give `accumulate` "
            f"{nearest}, and the `batch_size` that keeps the images of a step"
        )
    run = replace(run, loop=replace(run.loop, accumulate=accumulation_steps))
    workload = _workload(config, run)
    return Subject(verb, run, workload, _length(config, run, accumulation_steps), bool(run.loop.ema))


def _check_options(config: PlanRun, verb: str) -> None:
    default = PlanRun(images=1)
    others = (
        dict.fromkeys(("tokenizer", "views", "cached"), "pretrain")
        if verb != "pretrain"
        else dict.fromkeys(("classes", "validation"), "finetune and segment")
    )
    for name, home in others.items():
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"`{name}` is for {home}, and this plans {verb}; leave it out, or give another `recipe`")


def _run_of(config: PlanRun) -> AnyRun:
    """The verb's config: the recipe's or the defaults, with what the options say."""
    changed = _given(config, "batch_size", "steps", "epochs")
    if config.recipe is None:
        run: AnyRun = PretrainRun(IMAGES, out=OUT)
    else:
        run = recipe_named(config.recipe).config_without(changed)
    run = replace(run, train=replace(run.train, **changed), **_given(config, "image_size"))
    if not isinstance(run, PretrainRun):
        return run
    return choose(replace(run, views=config.views, **_given(config, "size", "patch")), None)[0]


def _given(config: PlanRun, *names: str) -> dict[str, Any]:
    """The options of these names that were given."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _workload(config: PlanRun, run: AnyRun) -> Workload:
    if isinstance(run, PretrainRun):
        tokenizer = _tokenizer(config)
        network = network_of(run, tokenizer.channels, vocabulary=tokenizer.vocabulary)
        predicted = masker(run.mask, network.backbone.grid).count
        return Workload(network=network, tokenizer=tokenizer, tried=TRIED_IMAGES, predicted=predicted)
    assert config.recipe is not None
    size = config.size or next(name for name in SIZES if name in config.recipe.split("-"))
    backbone = NetworkConfig().backbone(
        size,  # type: ignore[arg-type] - one of SIZES
        config.patch or DEFAULT_PATCH,
        resolved(run.image_size),
        drop_path=run.drop_path or 0.0,
        final_norm=False,
    )
    if isinstance(run, FinetuneRun):
        classes = numbered(config.classes or CLASSES["finetune"])
        return Workload(network=ClassifierConfig(backbone=backbone, classes=classes), mixes=run.augment.is_mixing)
    segmenter = SegmenterConfig(
        backbone=backbone,
        classes=numbered(config.classes or CLASSES["segment"]),
        head=run.head,
        channels=run.channels,
        auxiliary_channels=None if run.head == "linear" else min(AUXILIARY_CHANNELS, backbone.width),
    )
    return Workload(network=segmenter, loss=run.loss)


def _tokenizer(config: PlanRun) -> TokenizerConfig:
    if config.tokenizer in PUBLISHED_DVAES:
        return PUBLISHED_DVAES[config.tokenizer]
    path = Path(config.tokenizer)
    if not path.exists() and not is_on_hub(path):
        raise UserError(
            f"`tokenizer` must be one of {', '.join(PUBLISHED_DVAES)}, or a run folder or file, got {config.tokenizer!r}"
        )
    return load_tokenizer(path).config


def _length(config: PlanRun, run: AnyRun, accumulation_steps: int) -> Length:
    # The rates that a schedule starts from change nothing about its length.
    optim = replace(run.optim, warmup_epochs=0.0, warmup_steps=None)
    schedule = make_schedule(run.train, run.loop, optim, config.images, default_epochs=DEFAULT_EPOCHS)
    epochs = schedule.steps * schedule.images_per_step / config.images
    every = run.loop.evaluate_every
    if isinstance(run, FinetuneRun):
        every = every or curve_every(schedule.steps, schedule.steps * schedule.images_per_step, config.validation or 0)
    evaluations = -(-schedule.steps // every) if every else 1
    if isinstance(run, PretrainRun):
        stored = 0 if config.cached else config.views
        tokenized = 1.0 if stored is None else min(1.0, stored / epochs)
        judged = evaluations * min(EVALUATED_IMAGES, config.images)
    else:
        tokenized, judged = 0.0, evaluations * (config.validation or 0)
    return Length(schedule.steps, resolved(run.train.batch_size), accumulation_steps, config.gpus, tokenized, judged)
