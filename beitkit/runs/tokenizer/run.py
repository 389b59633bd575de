"""`beitkit tokenizer`: train a discrete VAE on images, so that each patch gets a visual token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import as_pair, by
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.find import find_images
from beitkit.data.stream import evaluation_batches, normalized
from beitkit.data.views.image import EvaluationView, PretrainView
from beitkit.errors import UserError
from beitkit.evaluation.tokens import TokenizerQuality
from beitkit.objectives.reconstruct import Reconstruct
from beitkit.report.images import token_map
from beitkit.report.normal import tokenizer_lines
from beitkit.report.sections import TrainingReport
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.training.pixels import decided_pixels
from beitkit.runs.training.session import Session, start_run
from beitkit.system import quoted
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.health import diagnose
from beitkit.train.loop import fit
from beitkit.train.optim import parameter_groups

DEFAULT_EPOCHS = 20
EVALUATED_IMAGES = 2000
"""The tokenizer is judged on at most this many images, seen whole and without augmentation."""
SHOWN_IMAGES = 8
UNIT_RANGE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_share=1.0)
"""Tokenizers take images in [0, 1] and normalize them themselves."""


def run(config: TokenizerRun) -> Path:
    """Train or continue a tokenizer; returns its run folder, which `beitkit.load_tokenizer` reads."""
    config, runtime = start_run(config)
    size, stride, channels = as_pair(config.image_size), config.dvae.stride, config.dvae.channels
    if any(side % stride for side in size):
        height, width = (max(1, round(side / stride)) * stride for side in size)
        raise UserError(
            f"`image_size` {by(size)} is not a multiple of the tokenizer's stride {stride}; nearest: {by((height, width))}"
        )
    files = find_images(config.images, config.columns.image)
    pixels = decided_pixels(files, UNIT_RANGE, channels, channels=config.channels, value_range=config.value_range)
    dvae = replace(config.dvae, channels=pixels.channels, value_range=pixels.preprocessing.value_range)
    channels, value_range = dvae.channels, dvae.value_range
    pinned = {"pictures": files.digest}
    session = Session.begin("tokenizer", config, runtime, pinned, images=len(files), default_epochs=DEFAULT_EPOCHS)
    if session is None:
        return config.out
    torch.manual_seed(config.train.seed)
    objective = Reconstruct(DiscreteVAE(dvae), config.reconstruct).to(runtime.device)
    tokenizer, schedule = objective.tokenizer, session.training.schedule
    for line in pixels.lines:
        session.say(line)
    session.say(
        f"tokenizer: {config.dvae.geometry}, {config.dvae.vocabulary} codes, stride {stride}, at {by(size)}; "
        f"{len(files)} images, {schedule.steps} steps of {schedule.images_per_step}, lr {schedule.lr:.3g}; {runtime.describe()}"
    )
    view, seed = PretrainView(config.view, size, None), config.train.seed
    dataset = ImageDataset(files, view, channels=channels, value_range=value_range, seed=seed, smallest=as_pair(stride))
    evaluated = files.evenly_spread(EVALUATED_IMAGES)
    shown = EvaluationView(UNIT_RANGE, size)
    evaluation = ImageDataset(evaluated, shown, channels=channels, value_range=value_range, kind="evaluate")

    def batches(first: int) -> Iterator[Batch]:
        return normalized(session.batches(dataset, first), UNIT_RANGE.mean, UNIT_RANGE.std)

    def evaluated_batches() -> Iterator[Batch]:
        return evaluation_batches(evaluation, UNIT_RANGE, session.reading._replace(workers=0))

    quality = TokenizerQuality(tokenizer, evaluated_batches)
    groups = parameter_groups(objective, config.optim.weight_decay)
    fit(objective, batches, groups, session.training, [quality], session.best("tokenizer/psnr", tokenizer))
    if runtime.is_main:
        psnr = dict(quality.run())["psnr"]
        for problem in diagnose(quality.usage.statistics(), psnr):
            session.say(f"warning: {problem.name}: {problem.finding} {problem.advice}")
        _report(session, tokenizer, quality, psnr, len(files))
    session.finish(tokenizer, f"beitkit pretrain {quoted(config.images)} --tokenizer {quoted(config.out)} --out ...")
    return config.out


@torch.no_grad()
def _report(session: Session, tokenizer: DiscreteVAE, quality: TokenizerQuality, psnr: float, images: int) -> None:
    folder = session.folder
    config, statistics = tokenizer.config, quality.usage.statistics()
    report = TrainingReport("Tokenizer", folder.path)
    report.facts(
        [
            ("Network", f"discrete VAE, {config.geometry}"),
            ("Codes", f"{config.vocabulary:,}, one for {config.stride}x{config.stride} pixels"),
            ("Images", f"{images:,}"),
            ("Device", session.training.runtime.describe()),
            *folder.broken_facts(),
        ]
    )
    report.normal(
        tokenizer_lines(
            diagnose(statistics, psnr),
            vocabulary=config.vocabulary,
            codes_used=statistics.codes_used,
            perplexity=statistics.perplexity,
            commonest_share=statistics.commonest_share,
            psnr=psnr,
        )
    )
    report.section("What the tokens keep", "Each image becomes a grid of tokens, and is decoded again from these alone.")
    batch = next(iter(quality.batches()))
    shown = batch["images"][batch["broken"] < 0][:SHOWN_IMAGES]
    ids = tokenizer.encode(shown)
    report.images(
        {
            "original": shown.cpu(),
            "tokens": torch.stack([token_map(row, config.vocabulary) for row in ids]),
            "reconstruction": tokenizer.decode(ids).cpu(),
        },
        "Images, their tokens (one color a code), and what the decoder makes of the tokens.",
    )
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
