"""The report of a segmentation run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol, runtime_checkable

from beitkit.configs.model import SegmenterConfig, by
from beitkit.data.scenes.audit import Audit
from beitkit.evaluation.scene_sheets import SceneScores, scene_sections
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.journal import read_journal
from beitkit.report.normal import segmentation_lines
from beitkit.report.sections import curve, last, normal_training, pace_figures
from beitkit.runs.segment.config import SegmentRun
from beitkit.train.folder import RunFolder
from beitkit.train.machine.runtime import Runtime


@runtime_checkable
class ComparedSegmenter(Protocol):
    """Another run's result on the same validation images."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        ...

    @property
    def mean_iou(self) -> float:
        """A share."""
        ...

    @property
    def class_iou(self) -> dict[str, float | None]:
        """A share by class; None for one of which there was nothing to measure."""
        ...


def write_report(
    folder: RunFolder,
    config: SegmentRun,
    network: SegmenterConfig,
    audited: Audit,
    scene_scores: SceneScores,
    compared: ComparedSegmenter | None,
    runtime: Runtime,
) -> None:
    """Write `report.html` of a finished run."""
    events = read_journal(folder.journal)
    backbone, scores = network.backbone, scene_scores.scores
    report = Report("Segmentation", str(folder.path))
    report.facts(
        [
            ("Start", "fresh weights" if config.scratch else f"{config.model}{', frozen' if config.freeze else ''}"),
            ("Network", f"width {backbone.width}, {backbone.depth} blocks, {network.head} head"),
            ("Crops", f"{by(backbone.image_size)} pixels"),
            ("Images", f"{audited.pairs:,} of {len(audited.classes)} classes"),
            ("Device", runtime.describe()),
            *folder.broken_facts(),
        ]
    )
    if compared is not None:
        _comparison(report, folder.path, scene_scores, compared)
    report.section("Is this normal?")
    lines = segmentation_lines(
        mean_iou=scores.mean_iou,
        pixel_accuracy=scores.pixel_accuracy,
        commonest_share=max(audited.shares),
        unseen=[name for name, iou in scene_scores.class_iou.items() if iou == 0],
        train_accuracy=last(events, "accuracy"),
    )
    report.normal_lines([*lines, *normal_training(events)])
    scene_sections(report, scene_scores)
    report.section("Learning")
    report.figure(
        curve(events, {"total": ("train", "loss"), "decoder": ("train", "main")}, title="Loss", y_label="cross-entropy"),
        "Cross-entropy; the total has the auxiliary head's share in it, where there is one.",
    )
    report.figure(
        curve(
            events,
            {"training crops": ("train", "accuracy"), "validation": ("evaluate", "val/aacc"), "mIoU": ("evaluate", "val/miou")},
            title="Pixels named right, and mIoU",
            y_label="share",
            unit="percent",
        ),
        "Training crops are scaled and distorted, so they are harder than validation images.",
    )
    report.section("The training masks")
    report.table(["class", "share of pixels", "images with it"], audited.rows(), "Found before training.")
    for note in audited.notes():
        report.paragraph(note)
    pace_figures(report, events)
    report.write(folder.path / "report.html")


def _comparison(report: Report, path: Path, scene_scores: SceneScores, compared: ComparedSegmenter) -> None:
    here = scene_scores.scores.mean_iou
    report.verdict(
        f"mIoU {here:.1%} here, {compared.mean_iou:.1%} in {compared.folder}: {100 * (here - compared.mean_iou):+.1f} points",
        None,
        "One run each. Repeat both with other values of --seed before you believe a small difference.",
    )
    names = [name for name, iou in scene_scores.class_iou.items() if iou is not None]
    rows = [
        [name, _percent(scene_scores.class_iou[name]), _percent(compared.class_iou.get(name))]
        for name in sorted(names, key=lambda name: -(scene_scores.class_iou[name] or 0))
    ]
    report.figure(
        dot_chart(
            [Dots("mIoU", [[here], [compared.mean_iou]])],
            [path.name, compared.folder.name],
            title="Side by side",
            x_label="run",
            y_label="mIoU",
        ),
        f"This run and {compared.folder}.",
    )
    report.table(["class", path.name, compared.folder.name], rows, "IoU of each class.")


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{share:.1%}"
