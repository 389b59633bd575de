"""Scores against loops over images."""

import math

import pytest
import torch
import torch.nn.functional as F

from beitkit.errors import UserError
from beitkit.evaluation.classification import Ranking
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
    assert scores.classes["b"][:2] == (sum(matrix[1]), pytest.approx(shares[1]))


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
    assert Ranking.of(scores, hits).average_precision == pytest.approx(step_wise(scores.tolist(), hits.tolist()))


def test_average_precision_by_hand() -> None:
    # scikit-learn's own example
    found = Ranking.of(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
    assert found == pytest.approx((0.75, 0.5 * 1 + 0.5 * 2 / 3))


def test_without_images_of_both_kinds_there_is_no_area_and_without_hits_no_precision() -> None:
    none, every = Ranking.of(torch.rand(3), torch.zeros(3).bool()), Ranking.of(torch.rand(3), torch.ones(3).bool())
    assert [math.isnan(value) for value in (*none, every.auroc)] == [True, True, True]
    assert every.average_precision == 1


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


@pytest.mark.parametrize("rounded", [False, True])
def test_single_label_scores_are_scikit_learn_s(rounded: bool) -> None:
    """With many equal probabilities as well; the last class has no images, and another is never named."""
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = random_case(6, 4)
    logits[range(60), labels] += 1.0
    logits[:, 2] -= 9.0
    logits = logits.round() if rounded else logits
    scores = single_label_scores(logits, labels, NAMES[:6])
    probabilities, named = logits.double().softmax(1).numpy(), logits.argmax(1).numpy()
    table = metrics.precision_recall_fscore_support(labels, named, labels=range(6), zero_division=math.nan)
    found = [(one.precision, one.top1, one.f1, one.images) for one in scores.classes.values()]
    assert list(map(tuple, zip(*table, strict=True))) == [pytest.approx(one, nan_ok=True) for one in found]
    assert math.isnan(scores.classes["c"].precision)
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, named, average="macro"))
    areas = [metrics.roc_auc_score(labels == place, probabilities[:, place]) for place in range(5)]
    precisions = [metrics.average_precision_score(labels == place, probabilities[:, place]) for place in range(5)]
    assert [one.auroc for one in scores.classes.values()] == pytest.approx([*areas, math.nan], nan_ok=True)
    assert [one.average_precision for one in scores.classes.values()] == pytest.approx([*precisions, math.nan], nan_ok=True)
    assert scores.auroc == pytest.approx(sum(areas) / 5)
    assert scores.average_precision == pytest.approx(sum(precisions) / 5)
    shown = logits[:, :5]  # where every class has images, scikit-learn and torchmetrics have a name for the mean
    whole, probabilities = single_label_scores(shown, labels, NAMES[:5]).auroc, shown.double().softmax(1)
    assert whole == pytest.approx(metrics.roc_auc_score(labels, probabilities.numpy(), multi_class="ovr"))
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    assert whole == pytest.approx(torchmetrics.multiclass_auroc(probabilities, labels, 5).item(), abs=1e-6)


def test_multilabel_scores_are_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(50, 4, generator=generator).mul(2).round() / 2  # with ties
    targets = torch.rand(50, 4, generator=generator) < 0.4
    scores = multilabel_scores(logits, targets, NAMES[:4])
    ranked, named = logits.sigmoid().numpy(), (logits >= 0).numpy()
    table = metrics.precision_recall_fscore_support(targets.numpy(), named)
    found = [(one.precision, one.recall, one.f1, one.images) for one in scores.classes.values()]
    assert list(map(tuple, zip(*table, strict=True))) == [pytest.approx(one) for one in found]
    assert scores.auroc == pytest.approx(metrics.roc_auc_score(targets.numpy(), ranked, average="macro"))
    assert scores.mean_average_precision == pytest.approx(metrics.average_precision_score(targets.numpy(), ranked))
    for average, value in (("micro", scores.micro_f1), ("macro", scores.macro_f1)):
        assert value == pytest.approx(metrics.f1_score(targets.numpy(), named, average=average))
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    assert scores.auroc == pytest.approx(torchmetrics.multilabel_auroc(logits.sigmoid(), targets.int(), 4).item(), abs=1e-6)


def test_images_of_one_class_only_have_no_area() -> None:
    scores = single_label_scores(torch.randn(9, 3), torch.zeros(9, dtype=torch.int64), NAMES[:3])
    assert math.isnan(scores.auroc)
    assert scores.average_precision == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_of_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = torch.randn(4, 3)
    logits[1, 1] = value
    with pytest.raises(UserError, match="not finite .* for 1 of 4 images"):
        single_label_scores(logits, torch.zeros(4, dtype=torch.int64), NAMES[:3])
    with pytest.raises(UserError, match="not finite .* for 1 of 4 images"):
        multilabel_scores(logits, torch.zeros(4, 3).bool(), NAMES[:3])


def test_temperature_changes_probabilities_and_not_what_is_right() -> None:
    logits, labels = random_case(6, 6)
    plain, sharp = single_label_scores(logits, labels, NAMES[:6]), single_label_scores(4 * logits, labels, NAMES[:6], 4.0)
    assert (sharp.loss, sharp.calibration_error, sharp.auroc) == (plain.loss, plain.calibration_error, plain.auroc)
    assert sharp.calibration == (4.0, *single_label_scores(4 * logits, labels, NAMES[:6]).calibration[1:])
    assert plain.calibrated == ""
    assert sharp.calibrated.startswith("temperature 4: calibration error ")
    assert sharp.confusion == plain.confusion


def test_each_class_has_its_threshold() -> None:
    logits, targets = torch.tensor([[0.0, 0.0], [-1.0, 1.0]]), torch.tensor([[True, False], [True, True]])
    scores = multilabel_scores(logits, targets, ("a", "b"), 2.0, (0.3, 0.5))
    assert (scores.classes["a"].recall, scores.classes["a"].threshold) == (1.0, 0.3)  # sigmoid(-1 / 2) is 0.38
    assert multilabel_scores(logits, targets, ("a", "b")).classes["a"].recall == 0.5
    assert scores.classes["b"].precision == 0.5
    assert scores.calibration.temperature == 2
