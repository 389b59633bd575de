"""Summaries and ratios against NumPy, and the share of a step's time that its matrix products would take."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.compare.result import compared, share, summarized


@pytest.mark.parametrize("rounds", [1, 2, 5, 8])
def test_summaries_are_numpys(rounds: int) -> None:
    seconds = np.random.default_rng(rounds).uniform(1, 3, rounds)
    found = summarized(seconds.tolist())
    expected = [np.median(seconds), *np.quantile(seconds, [0.25, 0.75]), seconds.min(), seconds.max()]
    np.testing.assert_allclose(
        [found.median, found.lower_quartile, found.upper_quartile, found.least, found.most], expected, rtol=1e-12
    )


def test_ratios_say_how_many_times_as_fast_the_first_is() -> None:
    first, second = np.array([1.0, 2.0, 4.0, 1.0]), np.array([3.0, 4.0, 20.0, 2.0])
    found = compared(first.tolist(), second.tolist())
    assert found.of_medians == np.median(second) / np.median(first)
    assert found.median_by_round == np.median(second / first)
    assert (found.least, found.most) == (2.0, 5.0)


def test_what_slows_a_whole_round_down_cancels_within_it() -> None:
    slowed = np.array([1.0, 7.0, 2.0])
    found = compared(slowed.tolist(), (1.5 * slowed).tolist())
    assert found.least == pytest.approx(1.5)
    assert found.most == pytest.approx(1.5)


def test_rounds_of_different_numbers_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        compared([1.0, 2.0], [1.0])


def test_a_share_adds_the_time_of_each_precision() -> None:
    # 4 images: 4 x 10 at 20 a second take 2 s, 4 x 6 at 8 a second take 3 s; the step took 10 s.
    assert share({"bfloat16": 10, "float32": 6}, 4, {"bfloat16": 20.0, "float32": 8.0}, 10.0) == pytest.approx(0.5)
    assert share({}, 4, {}, 10.0) is None
