"""Intervals and tests against closed forms, scipy and binomial sums."""

import math
from itertools import product

import pytest
from scipy.stats import binom, binomtest

from beitkit.evaluation.statistics import mcnemar, spread, wilson

Z = 1.959963984540054


@pytest.mark.parametrize(("right", "total"), [(0, 7), (7, 7), (5, 10), (1, 1), (37, 40), (123, 4567)])
def test_wilson_is_scipys(right: int, total: int) -> None:
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_in_closed_form_at_none_all_and_half() -> None:
    assert wilson(0, 10) == pytest.approx((0, Z**2 / (10 + Z**2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + Z**2), 1))
    half = Z / (2 * math.sqrt(10 + Z**2))
    assert wilson(5, 10) == pytest.approx((0.5 - half, 0.5 + half))
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0


@pytest.mark.parametrize(("first", "second"), [*product(range(5), range(5)), (3, 17), (40, 22)])
def test_mcnemar_is_the_binomial_sum(first: int, second: int) -> None:
    total = first + second
    expected = min(1.0, 2 * sum(binom.pmf(k, total, 0.5) for k in range(min(first, second) + 1)))
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, second) == pytest.approx(mcnemar(second, first))


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(1, 5) == pytest.approx(2 * 7 / 64)
    assert mcnemar(3000, 0) == 0.0  # smaller than any float, and no overflow


def test_spread_divides_by_one_less() -> None:
    assert spread([0.5, 0.7]) == pytest.approx((0.6, math.sqrt(0.02), 2))
