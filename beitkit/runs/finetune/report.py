"""The report of a fine-tuning run: inputs, curves and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.configs.model import ClassifierConfig, by
from beitkit.contracts import Batch, pixel_statistics
from beitkit.data.sources.image_list import ImageList
from beitkit.evaluation.longer import Outlook, twice_facts
from beitkit.evaluation.scores import MultilabelScores, Scores
from beitkit.evaluation.sheets.classes import score_sections
from beitkit.evaluation.statistics import wilson
from beitkit.report.normal import Line, comparison_line, finetuning_lines
from beitkit.report.sections import TrainingReport
from beitkit.report.table import Table
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.train.folder import RunFolder
from beitkit.train.machine.runtime import Runtime

SHOWN_IMAGES = 8
SHOWN_SHARE = 0.005
"""Smaller shares of a target are not written down."""


class FinetuneResult(NamedTuple):
    """What a fine-tuning run found out."""

    folder: Path
    accuracy: float
    """Top-1 share on the validation images; where images have several labels, the mean average precision."""


def write_report(
    folder: RunFolder,
    config: FinetuneRun,
    network: ClassifierConfig,
    train: ImageList,
    scores: Scores | MultilabelScores,
    compared: FinetuneResult | None,
    runtime: Runtime,
    first: Batch,
    length: Sequence[tuple[str, str]] = (),
    twice: Outlook | None = None,
) -> TrainingReport:
    """Write report.html, and return it.

    `first` is a training batch as the network sees it, `length` says how long a run with patience was, `twice` what one of twice
    the steps would bring.
    """
    report = TrainingReport("Fine-tuning", folder.path)
    report.facts([*facts_of(config, network, train, runtime), *length, *twice_facts(twice), *folder.broken_facts()])
    headline = scores.measures[0]
    if compared is not None:
        images = 0 if isinstance(scores, MultilabelScores) else scores.images
        both = (headline.value, compared.accuracy)
        intervals = [wilson(round(share * images), images) for share in both] if images else []
        report.beside_another_run(headline.name, headline.value, *compared, intervals)
    lines = (
        [_ranking_line(scores)]
        if isinstance(scores, MultilabelScores)
        else _accuracy_lines(scores, report.last("accuracy"), config)
    )
    if compared is not None:
        counted = None if isinstance(scores, MultilabelScores) else scores.images
        lines.append(comparison_line(headline.name, headline.value, str(compared.folder), compared.accuracy, counted))
    if twice is not None:
        lines.append(Line("note", twice.sentence))
    report.normal(lines)
    _preview(report, network, first)
    _learning(report, network)
    score_sections(report, scores, "Validation: ")
    report.finish()
    return report


def facts_of(config: FinetuneRun, network: ClassifierConfig, train: ImageList, runtime: Runtime) -> list[tuple[str, str]]:
    """What one must know of the run, which does not change while it goes on."""
    backbone = network.backbone
    return [
        ("Start", "fresh weights" if config.scratch else str(config.model)),
        ("Network", f"width {backbone.width}, {backbone.depth} blocks, {by(backbone.image_size)} pixels"),
        ("Labels", f"{len(train):,} of {len(train.classes)} classes"),
        ("Device", runtime.describe()),
    ]


def _accuracy_lines(scores: Scores, train_accuracy: float, config: FinetuneRun) -> list[Line]:
    return finetuning_lines(
        classes=len(scores.classes),
        accuracy=scores.top1,
        commonest_share=max(one.images for one in scores.classes.values()) / scores.images,
        images=scores.images,
        # Of mixed images only a part can be named right, so their accuracy says nothing about overfitting.
        train_accuracy=None if config.augment.is_mixing else train_accuracy,
        unseen=[name for name, one in scores.classes.items() if one.images and not one.top1],
    )


def _ranking_line(scores: MultilabelScores) -> Line:
    score, images = scores.mean_average_precision, scores.images
    shares = [one.images / images for one in scores.classes.values() if one.images]
    chance = sum(shares) / len(shares)
    measured = f"mean average precision is {score:.1%} on {images:,} images"
    against = f"a random order scores about {chance:.1%}"
    if score <= 1.1 * chance:
        return Line("warn", f"At chance: {measured}, and {against}; check the labels, then lower `lr` or train longer.")
    return Line("ok", f"The {measured}; {against}.")


def _preview(report: TrainingReport, network: ClassifierConfig, first: Batch) -> None:
    """What the network sees of its first images, and what it is told they are."""
    report.section("What the network sees", "Training images after augmentation, and the targets that go with them.")
    images = first["images"][:SHOWN_IMAGES].cpu()
    mean, std = pixel_statistics(network.preprocessing.mean, network.preprocessing.std, images.shape[1], images)
    half = max(1, len(images) // 2)
    pixels = (images * std + mean).clamp(0, 1)
    columns = {f"images 1 to {half}": pixels[:half]}
    if len(pixels) > 1:
        columns[f"from {half + 1} on"] = pixels[half : 2 * half]
    report.images(columns, "The beginning of the first batch, top to bottom.")
    targets = first["targets"] if "targets" in first else torch.eye(len(network.classes))[first["labels"].cpu()]
    named = [named_target(target, network.classes) for target in targets[: len(pixels)].cpu()]
    report.table(Table(["image", "target"], list(enumerate(named, start=1)), "Before label smoothing."))


def named_target(target: Float[Tensor, " classes"], classes: Sequence[str]) -> str:
    """A target in words: `70% cat, 30% dog`."""
    named = [f"{share:.0%} {classes[index]}" for index, share in enumerate(target.tolist()) if share > SHOWN_SHARE]
    return ", ".join(named) or "none of the classes"


def _learning(report: TrainingReport, network: ClassifierConfig) -> None:
    report.section("Learning")
    caption = "Cross-entropy; with label smoothing the training loss does not reach 0."
    report.curves({"training": "loss", "validation": "val/loss"}, caption, title="Loss", y_label="cross-entropy")
    if network.multilabel:
        scores = {"first named is right, training": "accuracy", "mean average precision": "val/map"}
        caption = "Training: how often the class named first is one of the image's. Validation: mean average precision."
    else:
        scores = {"training": "accuracy", "validation": "val/top1"}
        caption = "Share of images named right; of mixed ones, by their larger part."
    report.curves(scores, caption, title="Accuracy", y_label="share", unit="percent")
