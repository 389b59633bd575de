"""What twice the steps would bring, from planted curves and from pairs of runs that were measured."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from beitkit.evaluation.longer import NOTHING, Gain, Outlook, mean_gain, outlook
from beitkit.report.journal import Event

CASES = Path(__file__).parent / "longer_cases.csv"
"""Pairs of runs of `benchmarks/longer.py`: the evaluations of one, and where one of twice its length ended."""
IMAGES = 2_000
"""That judged them."""


def events(scores, note=None) -> list[Event]:
    """A journal of evaluations at even steps."""
    found = [
        Event(kind="evaluate", step=10 * step, numbers={"val/top1": score}, texts={}) for step, score in enumerate(scores, 1)
    ]
    return [*found, *([Event(kind="note", step=found[-1].step, numbers={}, texts={"text": note})] if note else [])]


def said(scores, images=10_000, note=None) -> Outlook:
    return outlook(events(scores, note), "val/top1", images)


def gain(scores, images=10_000) -> Gain:
    found = said(scores, images).gain
    assert found is not None
    return found


def test_a_flat_curve_promises_what_a_schedule_of_its_own_brought_alone():
    found = gain([0.8] * 5)
    assert found.expected == pytest.approx(0.2 * (1 - math.exp(-0.053)), rel=0.01)
    assert found.high < 0.02
    assert gain([0.8] * 5, 500).low < 0


def test_a_rising_curve_promises_a_gain_and_a_steeper_one_more():
    rising, steep = gain([0.55, 0.58, 0.6, 0.61, 0.62]), gain([0.2, 0.3, 0.4, 0.5, 0.62])
    assert rising.low > 0
    assert steep.expected > rising.expected > 0
    assert said([0.55, 0.58, 0.6, 0.61, 0.62]).sentence.startswith("Twice the steps would bring about +")


def test_fewer_images_widen_the_interval_but_promise_the_same():
    few, many = gain([0.7, 0.73, 0.75, 0.77, 0.78], 200), gain([0.7, 0.73, 0.75, 0.77, 0.78], 20_000)
    assert few.expected == pytest.approx(many.expected)
    assert few.high - few.low > 1.5 * (many.high - many.low)


def test_no_score_leaves_its_bounds():
    for scores in ([0.9, 0.99, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.2, 0.9, 0.99, 0.9999]):
        found = gain(scores, 50)
        assert -scores[-1] <= found.low <= found.expected <= found.high
        assert scores[-1] + found.expected <= 1


def test_a_run_that_patience_ended_or_that_fell_has_nothing_to_gain():
    stopped = said([0.6, 0.7, 0.7, 0.69], note="stopped after step 40 of 200: 2 evaluations in a row were not better in val/top1")
    fell = said([0.6, 0.8, 0.75, 0.7])
    for found in (stopped, fell):
        assert NOTHING in found.sentence
        assert str(found.gain) == NOTHING
    assert NOTHING not in said([0.6, 0.8, 0.795, 0.799]).sentence  # within the luck of so many images


def test_few_evaluations_are_no_curve():
    assert said([0.7]).gain is None
    assert "the run had 1 " in said([0.7]).sentence
    assert said([0.5, math.nan, math.nan, 0.6, 0.7]).gain is None


def test_the_mean_over_seeds_lies_between_them():
    assert mean_gain([Gain(0.1, 0.0, 0.2), Gain(0.2, 0.1, 0.4)]) == pytest.approx(Gain(0.15, 0.05, 0.3))


@pytest.mark.parametrize("part", ["checked"])
def test_intervals_cover_runs_that_really_were_longer(part):
    covered = [low <= longer <= high for low, high, longer in (promised(row) for row in cases() if row["part"] == part)]
    assert len(covered) >= 20
    assert sum(covered) >= 0.8 * len(covered)


def cases() -> list[dict[str, str]]:
    with CASES.open() as file:
        return list(csv.DictReader(file))


def promised(row) -> tuple[float, float, float]:
    """Ends of the interval, and what a run of twice the length really had more."""
    scores = [float(score) for score in row["scores"].split()]
    found = gain(scores, IMAGES)
    return found.low, found.high, float(row["longer"]) - scores[-1]
