"""Training of a discrete VAE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from beitkit.configs.model import by
from beitkit.configs.tokenizer import ReconstructConfig
from beitkit.configs.train import resolved
from beitkit.contracts import Batch
from beitkit.evaluation.tokens import TokenizerQuality
from beitkit.objectives.reconstruct import Reconstruct
from beitkit.report.sections import TrainingReport
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.tokenizer.images import RunImages, in_unit_range
from beitkit.runs.tokenizer.report import Judgement, facts, next_command, show_tokens, strip_of
from beitkit.runs.training.live import Strip, renewing
from beitkit.runs.training.own import OwnParts
from beitkit.runs.training.session import Session, start_run
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.train.loop import fit
from beitkit.train.optim import parameter_groups

DEFAULT_EPOCHS = 20
REVIVALS = 20
"""How often a run revives codes, at least: with fewer, most codes of a short run ended unused (decision 003)."""


def run(config: TokenizerRun, own: OwnParts) -> Path:
    """Train or continue one; returns its run folder."""
    config, runtime = start_run(config)
    images = RunImages.of(config, own)
    files = images.files
    session = Session.begin("tokenizer", config, runtime, images.inputs(), files=files, default_epochs=DEFAULT_EPOCHS)
    if session is None:
        return config.out
    torch.manual_seed(config.train.seed)
    schedule = session.training.schedule
    batches_in_all = schedule.steps * schedule.images_per_step // resolved(config.train.batch_size)
    reconstruct = with_revivals(config.reconstruct, batches_in_all)
    objective = Reconstruct(DiscreteVAE(images.fitted(config.dvae)), reconstruct).to(runtime.device)
    tokenizer = objective.tokenizer
    session.describe(tokenizer)
    for line in images.lines:
        session.say(line)
    session.say(
        f"tokenizer: {config.dvae.geometry}, {config.dvae.vocabulary} codes, stride {config.dvae.stride}, at {by(images.size)}; "
        f"{len(files)} images, {schedule.steps} steps of {schedule.images_per_step}, lr {schedule.lr:.3g}; {runtime.describe()}"
    )
    dataset = images.dataset()
    session.say_held(dataset)

    def batches(first: int) -> Iterator[Batch]:
        return in_unit_range(session.batches(dataset, first))

    quality = images.quality(tokenizer, session.reading)
    groups = parameter_groups(objective, config.optim.weight_decay)
    kind = f"discrete VAE, {config.dvae.geometry}"
    shown = [*facts(kind, tokenizer.config, len(files), session.training.runtime, session.folder), *images.checked]
    strip = strip_of(tokenizer, quality, session.folder)
    renewed = renewing(session.training, "Tokenizer", shown, strip)
    fit(objective, batches, groups, renewed, [quality], session.best("tokenizer/psnr", tokenizer))
    judgement = Judgement.of(quality, "dvae") if runtime.is_main else None
    if judgement is not None:
        session.say_found(_report(session, tokenizer, quality, judgement, shown, strip), config)
    session.finish(tokenizer, next_command(config, judgement))
    return config.out


def with_revivals(config: ReconstructConfig, batches: int) -> ReconstructConfig:
    """As it is, but that codes are revived `REVIVALS` times at least in a run of so many batches."""
    return replace(config, revive_every=min(config.revive_every, math.ceil(batches * config.revive_share / REVIVALS)))


@torch.no_grad()
def _report(
    session: Session,
    tokenizer: DiscreteVAE,
    quality: TokenizerQuality,
    judgement: Judgement,
    shown: list[tuple[str, str]],
    strip: Strip,
) -> TrainingReport:
    config = tokenizer.config
    report = TrainingReport("Tokenizer", session.folder.path)
    report.facts(shown)
    report.normal(judgement.lines())
    show_tokens(report, tokenizer, quality)
    steps = session.training.schedule.steps
    strip.grow(steps)
    strip.show(report, steps)
    report.section("Learning")
    caption = f"Training loss per pixel and channel ({config.reconstruction})."
    report.curves({"reconstruction": "reconstruction"}, caption, title="Reconstruction loss", y_label="loss")
    report.curves(
        {"perplexity": "perplexity"},
        "How many equally common codes would be as varied as those of a batch.",
        title="Perplexity of the codes",
        y_label="codes",
        references=[("all codes equally common", config.vocabulary)],
    )
    report.curves(
        {"KL to uniform": "kl"},
        f"How certain the encoder is of its choice; at most ln {config.vocabulary}. Last reconstruction loss: "
        f"{report.last('reconstruction'):.4g}.",
        title="KL to uniform",
        y_label="nats",
    )
    report.finish()
    return report
