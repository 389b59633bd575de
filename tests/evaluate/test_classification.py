"""Accuracy against hand-made cases."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from beitkit.contracts import Batch
from beitkit.evaluate.classification import (
    Accuracy,
    MeanAveragePrecision,
    average_precision,
    collect_logits,
    confusion,
    mean_average_precision,
    per_class,
    top_k,
)

LOGITS = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
LABELS = torch.tensor([0, 2, 2, 1])


def batches() -> Iterator[Batch]:
    """The third picture is broken and must not count."""
    images = torch.cat((LOGITS[:2], torch.zeros(1, 3), LOGITS[2:]))
    labels = torch.tensor([0, 2, 0, 2, 1])
    broken = torch.tensor([-1, -1, 7, -1, -1])
    for part in (slice(0, 3), slice(3, 5)):
        yield {"images": images[part], "labels": labels[part], "broken": broken[part]}


def test_top_k_by_hand() -> None:
    assert top_k(LOGITS, LABELS, 1) == 0.5
    assert top_k(LOGITS, LABELS, 2) == 0.75
    assert top_k(LOGITS, LABELS, 3) == 1.0


def test_broken_pictures_do_not_count() -> None:
    logits, labels = collect_logits(lambda images: images, batches())
    assert torch.equal(logits, LOGITS)
    assert torch.equal(labels, LABELS)


def test_the_evaluator_yields_top1_and_loss_and_no_top5_for_three_classes() -> None:
    values = dict(Accuracy(lambda images: images, batches).run())
    assert set(values) == {"top1", "loss"}
    assert values["top1"] == 0.5
    assert values["loss"] == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())


def test_confusion_and_per_class_by_hand() -> None:
    assert confusion(LOGITS, LABELS).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    counts = per_class(torch.cat((LOGITS, torch.zeros(4, 1) - 9), 1), LABELS)
    assert [count for count, _ in counts] == [1, 1, 2, 0]
    assert [share for _, share in counts[:3]] == [1.0, 0.0, 0.5]
    assert math.isnan(counts[3][1])


def brute_force_average_precision(scores: list[float], hits: list[bool]) -> float:
    """Sum over thresholds of (gain in recall) * precision."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [hit for score, hit in zip(scores, hits, strict=True) if score >= threshold]
        recall = sum(taken) / sum(hits)
        total += (recall - recall_before) * sum(taken) / len(taken)
        recall_before = recall
    return total


def test_average_precision_by_hand_and_by_brute_force() -> None:
    logits = torch.tensor([[3.0], [2.0], [1.0], [0.0]])
    assert average_precision(logits, torch.tensor([[True], [False], [True], [False]])).item() == pytest.approx((1 + 2 / 3) / 2)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (30, 4), generator=generator).float()  # with many ties
    targets = torch.rand(30, 4, generator=generator) < 0.3
    expected = [brute_force_average_precision(scores[:, c].tolist(), targets[:, c].tolist()) for c in range(4)]
    assert average_precision(scores, targets).tolist() == pytest.approx(expected)
    order = torch.randperm(30, generator=generator)
    assert average_precision(scores[order], targets[order]).tolist() == pytest.approx(expected)


def test_classes_that_no_picture_shows_are_left_out_of_the_mean() -> None:
    targets = torch.tensor([[True, False, False], [False, False, True], [True, False, True], [True, False, False]])
    assert average_precision(LOGITS, targets)[1].isnan()
    expected = average_precision(LOGITS, targets)[[0, 2]].mean().item()
    assert mean_average_precision(LOGITS, targets) == pytest.approx(expected)

    def several() -> Iterator[Batch]:
        broken = torch.tensor([-1, 5, -1, -1])
        yield {"images": LOGITS, "targets": targets.float(), "broken": broken}

    values = dict(MeanAveragePrecision(lambda images: images, several).run())
    kept = [0, 2, 3]
    assert values["map"] == pytest.approx(mean_average_precision(LOGITS[kept], targets[kept]))
    assert values["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(LOGITS[kept], targets[kept].float()).item())
