"""Segmentation metrics against hand-made cases and against mmsegmentation's formulas, written down plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from beitkit.contracts import Evaluator
from beitkit.errors import UserError
from beitkit.evaluation.segmentation import ConfusionTable, MeanIoU

#                            class 0      class 1      class 2 is never labeled, class 3 never seen
LABELS = torch.tensor([[0, 0, 0, 0], [1, 1, 255, 255]], dtype=torch.uint8)
FOUND = torch.tensor([[0, 0, 0, 1], [1, 2, 3, 0]], dtype=torch.uint8)


def test_by_hand() -> None:
    table = ConfusionTable(4)
    image = table.add(FOUND, LABELS)
    assert table.counts.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = table.scores()
    assert scores.iou[:3] == pytest.approx((3 / 4, 1 / 3, 0))
    assert math.isnan(scores.iou[3])
    assert scores.accuracy[:2] == pytest.approx((3 / 4, 1 / 2))
    assert math.isnan(scores.accuracy[2])
    assert math.isnan(scores.accuracy[3])
    assert scores.mean_iou == pytest.approx((3 / 4 + 1 / 3) / 3)
    assert image == scores.mean_iou
    assert scores.mean_accuracy == pytest.approx(5 / 8)
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    assert scores.weighted_iou == pytest.approx((4 * 3 / 4 + 2 * 1 / 3) / 6)
    assert (scores.unseen, scores.pixels) == (1, 6)


def mmseg(pairs: list[tuple[Tensor, Tensor]], classes: int) -> dict[str, float]:
    """`intersect_and_union` and `total_area_to_metrics` of mmsegmentation 0.11, with histograms."""
    total = np.zeros((3, classes))
    for prediction, label in pairs:
        mask = label.numpy() != 255
        pred, lab = prediction.numpy()[mask], label.numpy()[mask]
        areas = [np.histogram(values, bins=np.arange(classes + 1))[0] for values in (pred[pred == lab], pred, lab)]
        total += np.stack(areas)
    intersect, pred_area, label_area = total
    with np.errstate(invalid="ignore"):
        iou, accuracy = intersect / (pred_area + label_area - intersect), intersect / label_area
    return {"miou": np.nanmean(iou), "macc": np.nanmean(accuracy), "aacc": intersect.sum() / label_area.sum()}


def scenes(count: int, classes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(count):
        size = (7 + index, 9)
        label = torch.randint(0, classes - 2, size, generator=generator)  # the last two classes are in no label map
        wrong = torch.rand(size, generator=generator) < 0.1 * (index + 1)
        name = torch.where(wrong, torch.randint(0, classes - 1, size, generator=generator), label)
        label[torch.rand(size, generator=generator) < 0.2] = 255
        found.append((name.to(torch.uint8), label.to(torch.uint8)))
    return found


def test_the_evaluator_yields_what_mmsegmentation_computes() -> None:
    pairs = scenes(4, 8)
    # The "image" is the prediction, which `predict` hands through.
    evaluator: Evaluator = MeanIoU(lambda image: image[0], lambda share: [(name[None], label) for name, label in pairs], 8)
    assert dict(evaluator.run()) == pytest.approx(mmseg(pairs, 8))
    assert dict(evaluator.run()) == pytest.approx(mmseg(pairs, 8))  # counts start afresh


def test_means_are_over_the_data_set_and_images_are_ranked_by_their_own() -> None:
    pairs = scenes(4, 8)
    table = ConfusionTable(8)
    for prediction, label_map in pairs:
        table.add(prediction, label_map)
    scores = table.scores()
    own = [mmseg([pair], 8)["miou"] for pair in pairs]
    assert scores.image_iou == pytest.approx(own)
    assert scores.mean_iou != pytest.approx(np.mean(own))
    assert scores.worst_first() == list(np.argsort(own))
    assert scores.unseen == 1


def test_an_image_without_labels_counts_for_nothing() -> None:
    table = ConfusionTable(4)
    assert math.isnan(table.add(FOUND, torch.full_like(LABELS, 255)))
    assert math.isnan(table.scores().mean_iou)
    table.add(FOUND, LABELS)
    assert table.scores().pixels == 6
    assert table.scores().worst_first() == [1]


def test_wrong_maps_are_named() -> None:
    table = ConfusionTable(4)
    table.add(FOUND, LABELS)
    with pytest.raises(UserError, match="label map of image 1 holds the id 4, but the 4 classes are numbered 0 to 3"):
        table.add(FOUND, torch.full_like(LABELS, 4))
    with pytest.raises(UserError, match="prediction of image 1 holds the id 9"):
        table.add(torch.full_like(LABELS, 9), LABELS)
    with pytest.raises(UserError, match="label map of image 1 is 1x4 pixels, its prediction 2x4"):
        table.add(FOUND, LABELS[:1])
    assert table.scores().pixels == 6
