"""Accuracy against hand-made cases."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from beitkit.contracts import Batch, Share
from beitkit.errors import UserError
from beitkit.evaluation.classification import (
    ClassifierQuality,
    confusion,
    mean_average_precision,
    per_class,
    rankings,
    top_k,
)

LOGITS = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
LABELS = torch.tensor([0, 2, 2, 1])


def batches(share: Share) -> Iterator[Batch]:
    """The third image is broken and must not count."""
    images = torch.cat((LOGITS[:2], torch.zeros(1, 3), LOGITS[2:]))
    labels = torch.tensor([0, 2, 0, 2, 1])
    broken = torch.tensor([-1, -1, 7, -1, -1])
    for part in (slice(0, 3), slice(3, 5)):
        yield {"images": images[part], "labels": labels[part], "broken": broken[part]}


def test_top_k_by_hand() -> None:
    assert top_k(LOGITS, LABELS, 1) == 0.5
    assert top_k(LOGITS, LABELS, 2) == 0.75
    assert top_k(LOGITS, LABELS, 3) == 1.0


def test_equal_logits_count_the_same_in_top_1_and_in_the_confusion_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (500, 12), generator=generator).float()  # nearly every row has ties
    labels = torch.randint(12, (500,), generator=generator)
    assert top_k(logits, labels, 1) == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert top_k(logits, labels, 1) == pytest.approx(confusion(logits, labels).diagonal().sum().item() / 500)
    ranks = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = [place for _, place in sorted((-value, place) for place, value in enumerate(row))]
        ranks.append(order.index(label))
    assert top_k(logits, labels, 5) == pytest.approx(sum(rank < 5 for rank in ranks) / 500)


def test_broken_images_do_not_count() -> None:
    logits, labels = ClassifierQuality(lambda images: images, batches).answers()
    assert torch.equal(logits, LOGITS)
    assert torch.equal(labels, LABELS)


def test_the_evaluator_yields_top1_and_loss_and_no_top5_for_three_classes() -> None:
    values = dict(ClassifierQuality(lambda images: images, batches).run())
    assert set(values) == {"top1", "loss"}
    assert values["top1"] == 0.5
    assert values["loss"] == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())


def test_confusion_and_per_class_by_hand() -> None:
    assert confusion(LOGITS, LABELS).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    counts = per_class(torch.cat((LOGITS, torch.zeros(4, 1) - 9), 1), LABELS)
    assert [count for count, _ in counts] == [1, 1, 2, 0]
    assert [share for _, share in counts[:3]] == [1.0, 0.0, 0.5]
    assert math.isnan(counts[3][1])


def precisions(scores: torch.Tensor, targets: torch.Tensor) -> list[float]:
    return [one.average_precision for one in rankings(scores, targets)]


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
    assert precisions(logits, torch.tensor([[True], [False], [True], [False]])) == pytest.approx([(1 + 2 / 3) / 2])
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (30, 4), generator=generator).float()  # with many ties
    targets = torch.rand(30, 4, generator=generator) < 0.3
    expected = [brute_force_average_precision(scores[:, c].tolist(), targets[:, c].tolist()) for c in range(4)]
    assert precisions(scores, targets) == pytest.approx(expected)
    order = torch.randperm(30, generator=generator)
    assert precisions(scores[order], targets[order]) == pytest.approx(expected)


def test_classes_that_no_image_shows_are_left_out_of_the_mean() -> None:
    targets = torch.tensor([[True, False, False], [False, False, True], [True, False, True], [True, False, False]])
    first, second, third = precisions(LOGITS, targets)
    assert math.isnan(second)
    assert mean_average_precision(LOGITS, targets) == pytest.approx((first + third) / 2)

    def several(share: Share) -> Iterator[Batch]:
        broken = torch.tensor([-1, 5, -1, -1])
        yield {"images": LOGITS, "targets": targets.float(), "broken": broken}

    values = dict(ClassifierQuality(lambda images: images, several, is_multilabel=True).run())
    kept = [0, 2, 3]
    assert values["map"] == pytest.approx(mean_average_precision(LOGITS[kept], targets[kept]))
    assert values["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(LOGITS[kept], targets[kept].float()).item())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_and_counted(value: float) -> None:
    """NaN logits had top-1 100%: no logit is larger than NaN."""

    def predict(images: torch.Tensor) -> torch.Tensor:
        return torch.where(images == 1, value, images)  # the unreadable image has no 1

    with pytest.raises(UserError, match=r"outputs of the network are not finite .* for 4 of 4 images"):
        dict(ClassifierQuality(predict, batches).run())
