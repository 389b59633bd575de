"""Calibration by hand, and against loops."""

import math

import pytest
import torch

from beitkit.evaluation.calibration import calibration_error, reliability


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
