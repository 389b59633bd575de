"""Scores against loops over images."""

import math

import pytest
import torch
import torch.nn.functional as F

from beitkit.evaluation.classification import average_precision
from beitkit.evaluation.scores import largest_confusions, multilabel_scores, single_label_scores
from beitkit.evaluation.statistics import wilson

NAMES = ("a", "b", "c", "d", "e", "f", "g")


def random_case(classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(60, classes, generator=generator), torch.randint(classes - 1, (60,), generator=generator)


def test_single_label_scores_against_loops() -> None:
    logits, labels = random_case(7, 0)
    logits[range(60), labels] += 1.0
    scores = single_label_scores(logits, labels, NAMES)
    matrix = [[0] * 7 for _ in range(7)]
    in_five = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        matrix[label][row.index(max(row))] += 1
        in_five += sum(value > row[label] for value in row) < 5
    right = sum(matrix[place][place] for place in range(7))
    assert scores.confusion == matrix
    assert scores.top1 == pytest.approx(right / 60)
    assert scores.top1_interval == wilson(right, 60)
    assert scores.top5 == pytest.approx(in_five / 60)
    assert scores.top5_interval == wilson(in_five, 60)
    shares = [matrix[place][place] / sum(matrix[place]) for place in range(6)]
    assert scores.balanced == pytest.approx(sum(shares) / 6)  # the seventh class has no images
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert math.isnan(scores.classes["g"][1])
    assert scores.classes["b"] == (sum(matrix[1]), pytest.approx(shares[1]))


def test_largest_confusions_are_sorted_and_leave_the_diagonal_out() -> None:
    logits = F.one_hot(torch.tensor([0, 1, 1, 1, 2, 0, 0])).float()
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    mistakes = largest_confusions(single_label_scores(logits, labels, ("x", "y", "z")), 2)
    assert mistakes == [("x", "y", 2, pytest.approx(2 / 3)), ("z", "x", 2, 1.0)]


def step_wise(scores: list[float], hits: list[bool]) -> float:
    """Average precision by its definition: for every threshold, from the highest, precision times the rise in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [hit for score, hit in zip(scores, hits, strict=True) if score >= threshold]
        recall = sum(taken) / sum(hits)
        total += sum(taken) / len(taken) * (recall - before)
        before = recall
    return total


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_against_its_definition_with_ties(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(8, (30,), generator=generator).float()
    hits = torch.rand(30, generator=generator) < 0.3
    assert average_precision(scores, hits) == pytest.approx(step_wise(scores.tolist(), hits.tolist()))


def test_average_precision_by_hand() -> None:
    # scikit-learn's own example
    assert average_precision(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])) == pytest.approx(
        0.5 * 1 + 0.5 * 2 / 3
    )
    assert math.isnan(average_precision(torch.rand(3), torch.zeros(3, dtype=torch.bool)))


def test_multilabel_scores_against_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 4, generator=generator)
    targets = torch.rand(40, 4, generator=generator) < 0.4
    targets[:, 3] = False
    logits[:, 3] = -1.0  # neither shown nor named
    scores = multilabel_scores(logits, targets, ("a", "b", "c", "d"))
    f1 = []
    counts = [0, 0, 0]
    for column in range(3):
        hits = sum(logits[row, column].item() > 0 and targets[row, column].item() for row in range(40))
        said, shown = int((logits[:, column] > 0).sum()), int(targets[:, column].sum())
        f1.append(2 * hits / (said + shown))
        counts = [counts[0] + hits, counts[1] + said, counts[2] + shown]
    assert scores.micro_f1 == pytest.approx(2 * counts[0] / (counts[1] + counts[2]))
    assert scores.macro_f1 == pytest.approx(sum(f1) / 3)
    precisions = [step_wise(logits[:, column].tolist(), targets[:, column].tolist()) for column in range(3)]
    assert scores.mean_average_precision == pytest.approx(sum(precisions) / 3)
    exact = sum(all((logits[row] > 0) == targets[row]) for row in range(40))
    assert scores.subset_accuracy == pytest.approx(exact / 40)
    assert scores.loss == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets.float()).item())
    assert scores.classes["d"].images == 0
    assert math.isnan(scores.classes["d"].f1)
