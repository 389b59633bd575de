"""The report of a pre-training run: checks, reconstructions and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from torch import Tensor

from beitkit.configs.model import by
from beitkit.configs.train import resolved
from beitkit.contracts import Batch
from beitkit.data.stream import training_stream
from beitkit.evaluation.reconstruction import filled_in
from beitkit.nn.models import MaskedImageModel
from beitkit.report.charts import Reference
from beitkit.report.images import png_bytes, sheet
from beitkit.report.normal import Line, pixel_lines, pretraining_lines
from beitkit.report.sections import TrainingReport
from beitkit.runs.pretrain.judged import MASKED, PROBED, Judgment
from beitkit.runs.pretrain.setup import EVALUATED_IMAGES, Setup
from beitkit.runs.training.live import STRIP_IMAGES, Strip
from beitkit.system import write_atomically
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
    outcome: Judgment | None = None,
    strip: Strip | None = None,
) -> TrainingReport:
    """Write report.html and reconstructions.png of a run whose training is done; returns the report.

    `saved` is what a token cache brought, `outcome` what became of a run with `init`, `strip` draws the finished network.
    """
    config = setup.config
    stream = training_stream(setup.dataset(), resolved(config.train.batch_size), workers=config.machine.workers)
    prepared = setup.prepared(stream, runtime.device, encoder)
    first = next(prepared)
    statistics = None
    if model.config.vocabulary is not None:
        statistics = _count_tokens(first, prepared, model.config.vocabulary)

    report = TrainingReport("Pre-training", folder.path)
    report.facts(facts_of(setup, encoder, runtime))
    report.facts([*([] if saved is None else [("Token cache", saved)]), *folder.broken_facts()])
    report.normal([*([] if outcome is None else [outcome.line()]), *_target_lines(setup, report, statistics)])
    judged = "every patch" if setup.recover_all else "every hidden patch"
    if statistics is None:
        how = f"The network sees the masked image and predicts the pixels of {judged}."
    else:
        how = (
            f"The network sees the masked image and predicts a token for {judged}; the tokenizer's decoder turns tokens "
            "back into pixels. It can be no sharper than the third column."
        )
    report.section("What it sees, and what it fills in", how)
    columns, caption = what_it_fills_in(setup, model, first)
    report.images(columns, caption)
    write_atomically(folder.path / "reconstructions.png", png_bytes(sheet(columns)))
    if strip is not None:
        step = int(max(event.step for event in report.events))
        strip.grow(step)
        strip.show(report, step)
    if outcome is not None:
        report.section("Did it get better than its start?")
        sentence = outcome.sentence()
        report.verdict(f"{sentence[0].upper()}{sentence[1:]}.", (outcome.is_clear or None) if outcome.is_better else False)
        _start_curves(report, setup, outcome)
    elif config.labels is not None:
        report.section("How good are the blocks?")
        _probe_curves(report)
    report.section("Learning")
    if statistics is None:
        _pixel_curves(report)
    else:
        _token_curves(report, setup, statistics)
    report.finish()
    return report


def facts_of(setup: Setup, encoder: Encoder | None, runtime: Runtime) -> list[tuple[str, str]]:
    """What one must know of the run, which does not change while it goes on."""
    config = setup.config
    return [
        ("Network", f"{network_words(setup)} pixels"),
        *([] if config.init is None else [("Start", str(config.init))]),
        ("Targets", targets_of(setup)),
        ("Mask", mask_of(setup)),
        ("Images", f"{len(setup.files):,}{' shown' if setup.files.is_stream else ''}, no labels used"),
        ("Device", runtime.describe()),
        *([] if encoder is None or not encoder.describe() else [("Tokenizer", encoder.describe())]),
        *([] if config.recipe is None else [("Recipe", config.recipe)]),
        *setup.checked,
    ]


def strip_of(setup: Setup, model: MaskedImageModel, folder: RunFolder, batches: Callable[[], Iterator[Batch]]) -> Strip:
    """What the network fills in, of the first images of these batches; nothing where tokens cannot be decoded."""

    @cache
    def first() -> Batch:
        return next(batches())

    def draw() -> dict[str, Tensor]:
        columns, _ = filled_in(model, setup.tokenizer, first(), STRIP_IMAGES, recover_all=setup.recover_all)
        return columns if [*columns][-1].startswith("from predicted") else {}

    return Strip(folder.path, draw)


def network_words(setup: Setup) -> str:
    """The network: size, patch and image size."""
    backbone, size = setup.model.backbone, setup.config.size
    name = size or f"width {backbone.width}, {backbone.depth} blocks"
    return f"{name}/{backbone.patch[0]} at {by(backbone.image_size)}"


def _start_curves(report: TrainingReport, setup: Setup, outcome: Judgment) -> None:
    """What the run was judged by, from before the first step on, against the start."""
    if outcome.metric == PROBED:
        _probe_curves(report, [("linear probe of the start", outcome.start)])
    title, unit = ("Masked loss of the same images", "cross-entropy" if setup.tokenizer is not None else "squared error")
    start = [("start", outcome.start)] if outcome.metric == MASKED else []
    lone = f" Up to step {outcome.head_steps} only what is fresh learned." if outcome.head_steps else ""
    caption = f"On {EVALUATED_IMAGES} images at most, always in the same views.{lone}"
    report.curves({"loss": MASKED}, caption, title=title, y_label=unit, references=start)


def _probe_curves(report: TrainingReport, references: Sequence[Reference] = ()) -> None:
    report.curves(
        {"linear probe": PROBED, "nearest neighbors": "labels/neighbors"},
        "Share of held-out labeled images named right by the best block of each evaluation.",
        title="What the blocks know of the classes",
        y_label="share",
        unit="percent",
        references=references,
    )


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


def what_it_fills_in(setup: Setup, model: MaskedImageModel, batch: Batch) -> tuple[dict[str, Tensor], str]:
    """Image columns of the first images of a batch, and a sentence on what they are (`filled_in`)."""
    return filled_in(model, setup.tokenizer, batch, SHOWN_IMAGES, recover_all=setup.recover_all)


def _target_lines(setup: Setup, report: TrainingReport, statistics: UsageStatistics | None) -> list[Line]:
    rows, columns = setup.draw_mask.grid
    masked_share = None if setup.config.mask.kind == "none" else setup.draw_mask.count / (rows * columns)
    if setup.model.vocabulary is None or statistics is None:
        loss, variance = report.last("fixed/loss"), report.last("fixed/variance")
        return pixel_lines(loss=loss, variance=variance, masked_share=masked_share)
    return pretraining_lines(
        vocabulary=setup.model.vocabulary,
        loss=report.last(_loss_key(setup)),
        accuracy=report.last("accuracy"),
        token_entropy=math.log(statistics.perplexity),
        commonest_share=statistics.commonest_share,
        masked_share=masked_share,
    )


def _token_curves(report: TrainingReport, setup: Setup, statistics: UsageStatistics) -> None:
    """Loss and accuracy, against guessing."""
    judged = "all patches" if setup.recover_all else "masked patches"
    branch = {} if setup.model.cls_branch is None else {"through the class token": "branch_loss"}
    report.curves(
        {"loss": _loss_key(setup)} | branch,
        f"Cross-entropy over {judged}. The dashed lines are what guessing costs.",
        title="Loss",
        y_label="cross-entropy",
        references=[
            ("uniform guess", math.log(setup.model.outputs)),
            ("token frequencies", math.log(statistics.perplexity)),
        ],
    )
    report.curves(
        {"accuracy": "accuracy"},
        f"Share of {judged} whose token is predicted exactly.",
        title="Token accuracy",
        y_label="share",
        unit="percent",
        references=[("always the commonest token", statistics.commonest_share)],
    )


def _pixel_curves(report: TrainingReport) -> None:
    """Error, and how much of the pixels' variance the predictions explain."""
    report.curves(
        {"loss": "loss"},
        "Mean squared error of normalized pixels. The dashed line is what always predicting the mean patch costs.",
        title="Loss",
        y_label="squared error",
        references=[("variance of the pixels", report.last("fixed/variance"))],
    )
    caption = "1 - loss / variance of the pixels."
    report.curves({"explained": "explained"}, caption, title="Variance explained", y_label="share", unit="percent")


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
