"""The report of a pre-training run: checks, reconstructions and curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from beitkit.configs.model import by
from beitkit.configs.train import resolved
from beitkit.contracts import Batch
from beitkit.data.stream import training_stream
from beitkit.evaluation.reconstruction import EXPLANATION, PIXEL_EXPLANATION, pixel_columns, reconstruction_columns
from beitkit.nn.models import MaskedImageModel
from beitkit.report.document import Report
from beitkit.report.images import sheet, write_png
from beitkit.report.journal import Event, read_journal
from beitkit.report.normal import Line, pixel_lines, pretraining_lines
from beitkit.report.sections import curve, last, normal_training, pace_figures
from beitkit.runs.pretrain.setup import Setup
from beitkit.tokenizers.frozen import Encoder
from beitkit.tokenizers.health import CodeUsage, UsageStatistics
from beitkit.train.folder import RunFolder
from beitkit.train.machine.runtime import Runtime

COUNTED_BATCHES = 4
"""Batches whose tokens are counted for the baselines of "is this normal?"."""
SHOWN_IMAGES = 8


def write_report(
    folder: RunFolder,
    setup: Setup,
    model: MaskedImageModel,
    encoder: Encoder | None,
    runtime: Runtime,
    saved: str | None = None,
) -> None:
    """Write report.html and reconstructions.png of a run whose training is done; `saved` is what a token cache brought."""
    config = setup.config
    events = read_journal(folder.journal)
    stream = training_stream(setup.dataset(), resolved(config.train.batch_size), workers=config.machine.workers)
    prepared = setup.prepared(stream, runtime.device, encoder)
    first = next(prepared)
    statistics = None
    if model.config.vocabulary is not None:
        statistics = _count_tokens(first, prepared, model.config.vocabulary)

    report = Report("Pre-training", str(folder.path))
    report.facts(
        [
            ("Network", f"{config.size}/{config.patch} at {by(config.image_size)} pixels"),
            ("Targets", targets_of(setup)),
            ("Mask", mask_of(setup)),
            ("Images", f"{len(setup.files):,}, no labels used"),
            ("Device", runtime.describe()),
            *([] if encoder is None or not encoder.describe() else [("Tokenizer", encoder.describe())]),
            *([] if saved is None else [("Token cache", saved)]),
            *([] if config.recipe is None else [("Recipe", config.recipe)]),
            *folder.broken_facts(),
        ]
    )
    report.section("Is this normal?")
    report.normal_lines([*_target_lines(setup, events, statistics), *normal_training(events)])
    judged = "every patch" if setup.recover_all else "every hidden patch"
    if statistics is None:
        how = f"The network sees the masked image and predicts the pixels of {judged}."
    else:
        how = (
            f"The network sees the masked image and predicts a token for {judged}; the tokenizer's decoder turns tokens "
            "back into pixels. It can be no sharper than the third column."
        )
    report.section("What it sees, and what it fills in", how)
    columns = filled_columns(setup, model, first)
    report.images(columns, explanation(setup))
    write_png(folder.path / "reconstructions.png", sheet(columns))
    report.section("Learning")
    for svg, caption in _pixel_figures(events) if statistics is None else _token_figures(events, setup, statistics):
        report.figure(svg, caption)
    pace_figures(report, events)
    report.write(folder.path / "report.html")


def targets_of(setup: Setup) -> str:
    """What is predicted, in words."""
    vocabulary = setup.model.vocabulary
    what = f"{setup.model.outputs:,} pixel values a patch" if vocabulary is None else f"{vocabulary:,} visual tokens"
    where = ", of all patches" if setup.recover_all else ""
    return what + where + (", twice (class-token branch)" if setup.model.cls_branch is not None else "")


def mask_of(setup: Setup) -> str:
    """What is hidden, in words."""
    rows, columns = setup.draw_mask.grid
    return f"{setup.draw_mask.count} of {rows * columns} patches, {setup.config.mask.kind}"


def filled_columns(setup: Setup, model: MaskedImageModel, batch: Batch) -> dict[str, Tensor]:
    """Image columns of the first images of a batch: original, masked, and what the network fills in."""
    if setup.tokenizer is None:
        return pixel_columns(model, batch, SHOWN_IMAGES, recover_all=setup.recover_all)
    return reconstruction_columns(model, setup.tokenizer, batch, SHOWN_IMAGES, recover_all=setup.recover_all)


def explanation(setup: Setup) -> str:
    """What the columns are."""
    return PIXEL_EXPLANATION if setup.tokenizer is None else EXPLANATION


def _target_lines(setup: Setup, events: Sequence[Event], statistics: UsageStatistics | None) -> list[Line]:
    rows, columns = setup.draw_mask.grid
    masked_share = None if setup.config.mask.kind == "none" else setup.draw_mask.count / (rows * columns)
    if setup.model.vocabulary is None or statistics is None:
        loss, variance = (last(events, f"fixed/{name}", "evaluate") for name in ("loss", "variance"))
        return pixel_lines(loss=loss, variance=variance, masked_share=masked_share)
    return pretraining_lines(
        vocabulary=setup.model.vocabulary,
        loss=last(events, _loss_key(setup)),
        accuracy=last(events, "accuracy"),
        token_entropy=math.log(statistics.perplexity),
        commonest_share=statistics.commonest_share,
        masked_share=masked_share,
    )


def _token_figures(events: Sequence[Event], setup: Setup, statistics: UsageStatistics) -> Iterator[tuple[str, str]]:
    """Charts with their captions: loss and accuracy, against guessing."""
    judged = "all patches" if setup.recover_all else "masked patches"
    lines = {"loss": ("train", _loss_key(setup))}
    if setup.model.cls_branch is not None:
        lines["through the class token"] = ("train", "branch_loss")
    chance = math.log(setup.model.outputs)
    loss = curve(
        events,
        lines,
        title="Loss",
        y_label="cross-entropy",
        references=[("uniform guess", chance), ("token frequencies", math.log(statistics.perplexity))],
    )
    yield loss, f"Cross-entropy over {judged}. The dashed lines are what guessing costs."
    accuracy = curve(
        events,
        {"accuracy": ("train", "accuracy")},
        title="Token accuracy",
        y_label="share",
        unit="percent",
        references=[("always the commonest token", statistics.commonest_share)],
    )
    yield accuracy, f"Share of {judged} whose token is predicted exactly."


def _pixel_figures(events: Sequence[Event]) -> Iterator[tuple[str, str]]:
    """Charts with their captions: error, and how much of the pixels' variance the predictions explain."""
    loss = curve(
        events,
        {"loss": ("train", "loss")},
        title="Loss",
        y_label="squared error",
        references=[("variance of the pixels", last(events, "fixed/variance", "evaluate"))],
    )
    yield loss, "Mean squared error of normalized pixels. The dashed line is what always predicting the mean patch costs."
    explained = curve(
        events,
        {"explained": ("train", "explained")},
        title="Variance explained",
        y_label="share",
        unit="percent",
    )
    yield explained, "1 - loss / variance of the pixels."


def _loss_key(setup: Setup) -> str:
    """The logged loss that guessing can be compared with: of the main prediction alone, where there are two."""
    return "loss" if setup.model.cls_branch is None else "main_loss"


def _count_tokens(first: Batch, rest: Iterator[Batch], vocabulary: int) -> UsageStatistics:
    """How often each token occurs among the first images of a stream."""
    usage = CodeUsage(vocabulary)
    usage.update(first["tokens"])
    for _ in range(COUNTED_BATCHES - 1):
        usage.update(next(rest)["tokens"])
    return usage.statistics()


def previewed_batch(setup: Setup) -> Batch:
    """The first images of a run, ready for the network, on the CPU."""
    encoder = None if setup.tokenizer is None else Encoder.laid_out(setup.tokenizer.cpu())
    return next(setup.prepared(training_stream(setup.dataset(), SHOWN_IMAGES), torch.device("cpu"), encoder))
