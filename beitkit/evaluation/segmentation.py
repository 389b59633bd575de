"""Segmentation metrics: mIoU, pixel accuracies and relatives (method 7.5).

Everything is derived from one confusion matrix of pixels, without ignored ones, summed over all images before dividing, as in
mmsegmentation and the ADE20K benchmark; the mean of per-image values would be another number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from beitkit.contracts import IGNORED, WHOLE, Share
from beitkit.errors import UserError


class SegmentationScores(NamedTuple):
    """Segmentation scores in [0, 1]. NaN: no pixels of this class or image."""

    iou: tuple[float, ...]
    """Intersection over union of each class; NaN for one that is in no label map and was never predicted."""
    accuracy: tuple[float, ...]
    """Accuracy on each class's pixels; NaN for a class that is in no label map."""
    mean_iou: float
    """mIoU: the mean over classes that are not NaN."""
    mean_accuracy: float
    """mAcc: the mean over classes that are not NaN."""
    pixel_accuracy: float
    """aAcc: accuracy on all labeled pixels."""
    weighted_iou: float
    """Frequency-weighted IoU: classes weighted by their share of the labeled pixels."""
    unseen: int
    """Classes that are in no label map and were never predicted; the means leave them out."""
    pixels: int
    """Labeled pixels."""
    image_iou: tuple[float, ...]
    """Mean over classes of each image alone, in the order they were added; NaN for one without labeled pixels."""

    def worst_first(self) -> list[int]:
        """Images by their own mean intersection over union, worst first; those that cannot be measured are left out."""
        measured = [index for index, value in enumerate(self.image_iou) if not math.isnan(value)]
        return sorted(measured, key=lambda index: self.image_iou[index])


class ConfusionTable:
    """Accumulates the confusion matrix of pixels, image by image."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        """True classes down, predicted ones across, in pixels."""
        self._image_iou: list[float] = []

    def add(self, prediction: UInt8[Tensor, "h w"], label_map: UInt8[Tensor, "true_h true_w"]) -> float:
        """Add one image; returns its own mIoU.

        Raises:
            UserError: if the two differ in size, or hold an id that is not a class.
        """
        number, classes = len(self._image_iou), len(self.counts)
        if prediction.shape != label_map.shape:
            raise UserError(
                f"the label map of image {number} is {label_map.shape[0]}x{label_map.shape[1]} pixels, "
                f"its prediction {prediction.shape[0]}x{prediction.shape[1]}; they must be of one size"
            )
        is_labeled = label_map != IGNORED
        labels, names = label_map[is_labeled].long().cpu(), prediction[is_labeled.to(prediction.device)].long().cpu()
        for what, ids in (("label map", labels), ("prediction", names)):
            if ids.numel() and int(ids.max()) >= classes:
                raise UserError(
                    f"the {what} of image {number} holds the id {int(ids.max())}, but the {classes} classes are numbered "
                    f"0 to {classes - 1}, and {IGNORED} is ignored; correct the label map or the list of classes"
                )
        counts = torch.bincount(labels * classes + names, minlength=classes * classes).view(classes, classes)
        self.counts += counts
        self._image_iou.append(_mean(_iou(counts)))
        return self._image_iou[-1]

    def __add__(self, other: ConfusionTable) -> ConfusionTable:
        """The table of the images of both."""
        both = ConfusionTable(len(self.counts))
        both.counts = self.counts + other.counts
        both._image_iou = self._image_iou + other._image_iou
        return both

    def scores(self) -> SegmentationScores:
        """The scores so far."""
        iou, right, labeled = _iou(self.counts), self.counts.diagonal().double(), self.counts.sum(1).double()
        accuracy = right / labeled  # 0 / 0 is NaN
        return SegmentationScores(
            iou=tuple(iou.tolist()),
            accuracy=tuple(accuracy.tolist()),
            mean_iou=_mean(iou),
            mean_accuracy=_mean(accuracy),
            pixel_accuracy=float(right.sum() / labeled.sum()),
            weighted_iou=float((iou.nan_to_num() * labeled).sum() / labeled.sum()),
            unseen=int(iou.isnan().sum()),
            pixels=int(self.counts.sum()),
            image_iou=tuple(self._image_iou),
        )


@dataclass
class MeanIoU:
    """mIoU, mAcc and aAcc (as shares) over one pass of images with label maps."""

    predict: Callable[[Tensor], Tensor]
    """An image, uint8 (c, h, w), to its label map, uint8 (h, w)."""
    scenes: Callable[[Share], Iterable[tuple[Tensor, Tensor]]]
    """A share of a fresh ordered pass of images, uint8 (c, h, w), and their label maps, uint8 (h, w)."""
    classes: int
    name: str = "val"

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield miou, macc and aacc."""
        tables = share.together(self._tables(share))
        if tables is None:
            return
        scores = sum(tables[1:], tables[0]).scores()
        yield "miou", scores.mean_iou
        yield "macc", scores.mean_accuracy
        yield "aacc", scores.pixel_accuracy

    def _tables(self, share: Share) -> Iterator[ConfusionTable]:
        """One, of all scenes of a share."""
        table = ConfusionTable(self.classes)
        for image, label_map in self.scenes(share):
            table.add(self.predict(image), label_map)
        yield table


def _iou(counts: Int[Tensor, "classes classes"]) -> Tensor:
    right = counts.diagonal().double()
    return right / (counts.sum(0) + counts.sum(1) - right)  # (classes); 0 / 0 is NaN


def _mean(values: Tensor) -> float:
    return float(values.nanmean())
