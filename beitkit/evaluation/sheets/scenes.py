"""Segmentation metrics and sheets of image, truth, prediction and error, for `segment` and `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from beitkit.configs.segmentation import Color
from beitkit.contracts import in_unit_range
from beitkit.data.scenes.reading import NumberedScene
from beitkit.evaluation.segmentation import ConfusionTable, SegmentationScores
from beitkit.evaluation.statistics import Measure
from beitkit.report.charts import heat_map
from beitkit.report.document import Report
from beitkit.report.images import stacked
from beitkit.report.overlays import error_map, overlay
from beitkit.report.table import Column, Table, percent

WORST = 6
"""Images that are shown, those with the smallest mean intersection over union."""
SHEET_SIDE = 240
"""Long side in pixels of the images that are kept for a sheet."""
CONFUSION_CLASSES = 24
"""Most classes in the table of confusions."""
SHEET_EXPLANATION = (
    "The images with the smallest mean IoU, worst first. Error: red where the prediction is wrong, gray where nothing counts."
)


class Shown(NamedTuple):
    """One image of a sheet, reduced; all (3, h, w) in [0, 1]."""

    place: int
    """Its index in the list."""
    mean_iou: float
    columns: dict[str, Float[Tensor, "3 h w"]]


class SceneScores(NamedTuple):
    """Result of evaluating label maps."""

    scores: SegmentationScores
    class_iou: dict[str, float | None]
    """None for a class that neither occurs nor was named."""
    confusion: Tensor
    """True classes down, predicted ones across, in pixels."""
    indices: tuple[int, ...]
    """Which image of the list each measured one is."""
    worst: tuple[Shown, ...]
    palette: tuple[Color, ...]

    @property
    def measures(self) -> list[Measure]:
        """The numbers over all images; the first is the one to compare."""
        return [
            Measure("mIoU", self.scores.mean_iou),
            Measure("mean accuracy", self.scores.mean_accuracy),
            Measure("pixels named right", self.scores.pixel_accuracy),
            Measure("IoU weighed by frequency", self.scores.weighted_iou),
        ]

    @property
    def class_table(self) -> Table:
        """One row per class."""
        totals = self.confusion.sum(1)
        shares = (totals / totals.sum()).tolist()
        return Table(
            ["class", *(Column(name, percent) for name in ("share of pixels", "IoU", "named right"))],
            list(zip(self.class_iou, shares, self.scores.iou, self.scores.accuracy, strict=True)),
            "Validation pixels. IoU is intersection over union, summed over all images before it is divided.",
        )


def evaluate_scenes(
    predict: Callable[[Tensor], Tensor], scenes: Iterable[NumberedScene], classes: Sequence[str], palette: tuple[Color, ...]
) -> SceneScores:
    """Predict and measure every scene, and keep the worst for a sheet.

    Args:
        predict: an image, uint8 (c, h, w), to its label map, uint8 (h, w).
        scenes: one ordered pass.
        classes: names of the classes, by id.
        palette: their colors.
    """
    table = ConfusionTable(len(classes))
    indices: list[int] = []
    worst: list[Shown] = []
    for scene in scenes:
        predicted = predict(scene.image)
        mean_iou = table.add(predicted, scene.label_map)
        indices.append(scene.place)
        if mean_iou == mean_iou and (len(worst) < WORST or mean_iou < worst[-1].mean_iou):  # NaN: nothing counts in it
            worst.append(Shown(scene.place, mean_iou, _columns(scene, predicted, palette)))
            worst = sorted(worst, key=lambda shown: shown.mean_iou)[:WORST]
    scores = table.scores()
    class_iou = {name: None if iou != iou else iou for name, iou in zip(classes, scores.iou, strict=True)}
    return SceneScores(scores, class_iou, table.counts, tuple(indices), tuple(worst), palette)


def scene_sections(report: Report, scene_scores: SceneScores) -> None:
    """Report sections of an evaluation: classes, confusions, worst images."""
    report.section("Classes")
    report.table(scene_scores.class_table)
    if len(scene_scores.class_iou) <= CONFUSION_CLASSES:
        report.figure(
            heat_map(
                scene_scores.confusion.tolist(),
                list(scene_scores.class_iou),
                title="What is taken for what",
                x_label="predicted",
                y_label="true class",
            ),
            "Pixels of each true class (row) by predicted class (column).",
        )
    if scene_scores.worst:
        report.section("Worst images first", SHEET_EXPLANATION)
        report.legend(dict(zip(scene_scores.class_iou, scene_scores.palette, strict=True)))
        report.images(
            {name: stacked([shown.columns[name] for shown in scene_scores.worst]) for name in scene_scores.worst[0].columns},
            "Mean IoU of each: " + ", ".join(f"{shown.mean_iou:.1%}" for shown in scene_scores.worst) + ".",
            cell=SHEET_SIDE,
        )


def _columns(
    scene: NumberedScene, predicted: UInt8[Tensor, "h w"], palette: Sequence[Color]
) -> dict[str, Float[Tensor, "3 h w"]]:
    shown = in_unit_range(scene.image[:3] if len(scene.image) >= 3 else scene.image[:1])
    image = shown.expand(3, -1, -1)
    return {
        "image": _reduced(image),
        "truth": _reduced(overlay(scene.image, scene.label_map, palette)),
        "prediction": _reduced(overlay(scene.image, predicted, palette)),
        "error": _reduced(error_map(predicted, scene.label_map)),
    }


def _reduced(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 sh sw"]:
    height, width = image.shape[1:]
    factor = min(1.0, SHEET_SIDE / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    return F.interpolate(image[None], size=size, mode="area")[0]
