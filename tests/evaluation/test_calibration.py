"""Calibration by hand, and against loops."""

import math

import pytest
import torch

from beitkit.errors import UserError
from beitkit.evaluation.calibration import (
    FEWEST,
    as_decided,
    calibration_error,
    chosen_thresholds,
    fitted_temperature,
    loss_of,
    reliability,
)


def test_certainty_that_comes_true_has_no_error() -> None:
    certainty = torch.full((10,), 0.8)
    right = torch.arange(10) < 8
    assert calibration_error(reliability(certainty, right)) == pytest.approx(0, abs=1e-7)


def test_two_bins_by_hand() -> None:
    bins = reliability(torch.tensor([0.95, 0.95, 0.55, 0.55]), torch.tensor([True, False, True, True]), bins=10)
    # two images at 0.95 of which half are right, two at 0.55 that are all right
    assert calibration_error(bins) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    assert [(one.images, one.accuracy) for one in bins if one.images] == [(2, 1.0), (2, 0.5)]
    assert math.isnan(bins[0].accuracy)


def test_edges_belong_to_the_lower_bin() -> None:
    bins = reliability(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.ones(4, dtype=torch.bool), bins=4)
    assert [one.images for one in bins] == [2, 1, 0, 1]


def test_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    certainty, right = torch.rand(200, generator=generator), torch.rand(200, generator=generator) < 0.6
    error = 0.0
    for index in range(15):
        inside = [place for place in range(200) if index / 15 < certainty[place].item() <= (index + 1) / 15]
        if inside:
            accuracy = sum(right[place].item() for place in inside) / len(inside)
            error += len(inside) / 200 * abs(accuracy - sum(certainty[place].item() for place in inside) / len(inside))
    assert calibration_error(reliability(certainty, right)) == pytest.approx(error)


def test_calibration_error_is_torchmetrics_s() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.randn(300, 4, generator=generator, dtype=torch.float64).mul(2).softmax(1)
    labels = torch.randint(4, (300,), generator=generator)
    ours = calibration_error(reliability(probabilities.amax(1), probabilities.argmax(1) == labels))
    assert ours == pytest.approx(metrics.multiclass_calibration_error(probabilities, labels, 4, n_bins=15).item(), abs=1e-6)


def test_two_logits_that_are_right_in_a_known_share_have_a_temperature_in_closed_form() -> None:
    """Logits (a, 0) that are right in 80% of 500 images: sigmoid(a / T) = 0.8."""
    logits = torch.tensor([[3.0, 0.0]]).expand(500, 2)
    labels = (torch.arange(500) >= 400).long()
    assert fitted_temperature(logits, labels).value == pytest.approx(3 / math.log(4), rel=1e-9)
    several = fitted_temperature(torch.full((500, 1), 3.0), (labels == 0)[:, None])
    assert several.value == pytest.approx(3 / math.log(4), rel=1e-9)


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_no_other_temperature_has_a_smaller_loss(is_multilabel: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(400, 5, generator=generator)
    labels = (logits / 3 + 2 * torch.randn(400, 5, generator=generator)).argmax(1)
    targets = torch.nn.functional.one_hot(labels).bool() if is_multilabel else labels
    found = fitted_temperature(logits, targets)
    assert found.value != 1
    least = optimize.minimize_scalar(lambda t: loss_of(logits.double() / t, targets), bounds=(0.05, 20), method="bounded")
    assert loss_of(logits.double() / found.value, targets) <= least.fun + 1e-12
    assert found.value == pytest.approx(least.x, rel=1e-3)


def test_a_temperature_that_cannot_be_told_from_1_is_not_taken() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    right = torch.zeros(8, dtype=torch.int64)
    assert fitted_temperature(logits.expand(8, 2), right) == (1.0, "none between 0.05 and 20 fits 8 validation images best")
    assert fitted_temperature(-logits.expand(8, 2), right).value == 1  # worse than chance
    few, many = (torch.arange(4 * images) % 4 == 0 for images in (2, 500))
    assert fitted_temperature(logits.expand(8, 2), few.long()).value == 1
    assert fitted_temperature(logits.expand(2000, 2), many.long()).value == pytest.approx(2 / math.log(3), rel=1e-6)
    with pytest.raises(UserError, match="not finite .* for 1 of 1 images"):
        fitted_temperature(torch.tensor([[math.nan, 0.0]]), right[:1])


@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_has_a_larger_f1(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(60, 3, generator=generator).mul(2).round().sigmoid()  # with many ties
    targets = torch.rand(60, 3, generator=generator) < probabilities * 0.7
    thresholds = chosen_thresholds(probabilities, targets)
    for column, (threshold, hits) in enumerate(zip(thresholds, targets.T, strict=True)):
        values = probabilities[:, column]
        best = max(metrics.f1_score(hits, values >= value) for value in values)
        assert metrics.f1_score(hits, as_decided(values[:, None], [threshold])[:, 0]) == pytest.approx(best)
        assert threshold == 0.5 or threshold not in values.tolist()


def test_a_class_keeps_one_half_where_nothing_is_better_or_little_is_known() -> None:
    scores = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.8, 0.1, 0.1, 0.05])[:, None]
    hits = torch.arange(8)[:, None] < 5
    assert chosen_thresholds(scores, hits) == (0.5,)
    assert chosen_thresholds(scores / 4, hits)[0] == pytest.approx((0.2 + 0.025) / 2)
    assert chosen_thresholds(scores / 4, torch.arange(8)[:, None] < FEWEST - 1) == (0.5,)
    assert chosen_thresholds(scores / 4, torch.ones(8, 1).bool())[0] == pytest.approx(0.05 / 8)  # all of them: below the least
