"""The report of a segmentation run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from beitkit.configs.model import SegmenterConfig, by
from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.data.scenes.audit import Audit
from beitkit.evaluation.sheets.scenes import SceneScores, scene_sections
from beitkit.report.normal import comparison_line, segmentation_lines, unseen_hint
from beitkit.report.sections import TrainingReport
from beitkit.report.table import Table
from beitkit.runs.segment.config import SegmentRun
from beitkit.train.folder import RunFolder
from beitkit.train.machine.runtime import Runtime


class SegmentResult(NamedTuple):
    """What a segmentation run found out, on the validation images; all values are shares."""

    folder: Path
    mean_iou: float
    """Mean over the classes that occur of intersection / union."""
    class_iou: dict[str, float | None]
    """None for a class that neither occurs nor was named."""


def hint_on_unseen(loss: SegmentationLossConfig, scene_scores: SceneScores) -> str | None:
    """What to do about classes that stayed at an IoU of 0; None where there are none."""
    unseen = [name for name, iou in scene_scores.class_iou.items() if iou == 0]
    return unseen_hint(unseen, is_weighed=loss.is_weighed)


def write_report(
    folder: RunFolder,
    config: SegmentRun,
    network: SegmenterConfig,
    audited: Audit,
    scene_scores: SceneScores,
    compared: SegmentResult | None,
    runtime: Runtime,
    length: Sequence[tuple[str, str]] = (),
) -> TrainingReport:
    """Write `report.html` of a finished run; `length` says how long one with patience was. Returns the report."""
    scores = scene_scores.scores
    report = TrainingReport("Segmentation", folder.path)
    report.facts([*facts_of(config, network, audited, runtime), *length, *folder.broken_facts()])
    if compared is not None:
        _comparison(report, scene_scores, compared)
    lines = segmentation_lines(
        mean_iou=scores.mean_iou,
        pixel_accuracy=scores.pixel_accuracy,
        commonest_share=max(audited.shares),
        unseen=hint_on_unseen(config.loss, scene_scores),
        train_accuracy=report.last("accuracy"),
    )
    if compared is not None:
        lines.append(comparison_line("mIoU", scores.mean_iou, str(compared.folder), compared.mean_iou, None))
    report.normal(lines)
    scene_sections(report, scene_scores)
    report.section("Learning")
    caption = "Cross-entropy; the total has the auxiliary head's share in it, where there is one."
    report.curves({"total": "loss", "decoder": "main"}, caption, title="Loss", y_label="cross-entropy")
    report.curves(
        {"training crops": "accuracy", "validation": "val/aacc", "mIoU": "val/miou"},
        "Training crops are scaled and distorted, so they are harder than validation images.",
        title="Pixels named right, and mIoU",
        y_label="share",
        unit="percent",
    )
    report.section("The training masks")
    report.table(Table(["class", "share of pixels", "images with it"], audited.rows(), "Found before training."))
    for note in audited.notes():
        report.paragraph(note)
    report.finish()
    return report


def facts_of(config: SegmentRun, network: SegmenterConfig, audited: Audit, runtime: Runtime) -> list[tuple[str, str]]:
    """What one must know of the run, which does not change while it goes on."""
    backbone = network.backbone
    return [
        ("Start", "fresh weights" if config.scratch else f"{config.model}{', frozen' if config.freeze else ''}"),
        ("Network", f"width {backbone.width}, {backbone.depth} blocks, {network.head} head"),
        ("Crops", f"{by(backbone.image_size)} pixels"),
        ("Images", f"{audited.pairs:,} of {len(audited.classes)} classes"),
        ("Device", runtime.describe()),
    ]


def _comparison(report: TrainingReport, scene_scores: SceneScores, compared: SegmentResult) -> None:
    names = [name for name, iou in scene_scores.class_iou.items() if iou is not None]
    names.sort(key=lambda name: -(scene_scores.class_iou[name] or 0))
    classes = [(f"IoU of {name}", scene_scores.class_iou[name], compared.class_iou.get(name)) for name in names]
    report.beside_another_run("mIoU", scene_scores.scores.mean_iou, compared.folder, compared.mean_iou, more=classes)
