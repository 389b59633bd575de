"""Planted orders: a clear winner is named, one within the spread is not, and a floor above all is said."""

import math

import pytest
import torch

from beitkit.evaluation.statistics import mcnemar
from beitkit.evaluation.verdict import Entrant, claim, contest, paired

IMAGES = 2000


def planted(name: str, shares: list[float], *, is_floor: bool = False, images: int = IMAGES, seed: int = 0) -> Entrant:
    """Answers of which these shares are right, at places that a seed draws."""
    rows = []
    for number, share in enumerate(shares):
        order = torch.randperm(images, generator=torch.Generator().manual_seed(seed + 100 * number))
        rows.append((order < share * images).double())
    scores = tuple(float(row.mean()) for row in rows)
    return Entrant(name, is_floor, scores, torch.stack(rows), (1.0,) * len(shares))


PRE, BEIT, SCRATCH = (
    planted("pre", [0.80, 0.81, 0.79], seed=1),
    planted("beit", [0.70, 0.71, 0.69], seed=2),
    planted("scratch", [0.50, 0.51, 0.52], seed=3),
)


def test_a_clear_winner_is_named() -> None:
    found = contest(1000, [SCRATCH, PRE, BEIT])
    assert [entry.name for entry in found.starts] == ["pre", "beit", "scratch"]
    assert found.winner == "pre"
    assert found.sentence == "pre is the best start: 80.0%, +10.0 points, spread 1.0, p < 0.0001 against beit."
    assert claim([found]) == ("The best start is pre", True, "pre")


@pytest.mark.parametrize("lead", [0.005, 0.04])
def test_within_the_spread_nobody_wins(lead: float) -> None:
    """Ahead by less than the seeds differ; the larger lead is significant over the images, and still not enough."""
    first = planted("first", [0.75 + lead, 0.70 + lead, 0.65 + lead], seed=1)
    second = planted("second", [0.75, 0.70, 0.65], seed=2)
    found = contest(100, [first, second])
    assert found.pairs[0].deviation == pytest.approx(0.05)
    assert (found.pairs[0].p_value < 0.05) == (lead == 0.04)
    assert found.winner is None
    assert found.sentence.startswith("No start is clearly best: first")
    assert claim([found]) == ("No start is clearly best", None, None)


def test_a_lead_that_few_images_show_is_not_clear() -> None:
    """Beyond the spread over seeds, but 30 images cannot tell."""
    found = contest(100, [planted("a", [0.6, 0.6, 0.6], images=30, seed=1), planted("b", [0.5, 0.5, 0.5], images=30, seed=2)])
    assert found.pairs[0].difference > found.pairs[0].deviation == 0
    assert found.pairs[0].p_value > 0.05
    assert found.winner is None


def test_the_winner_must_beat_every_other_start() -> None:
    close = planted("close", [0.81, 0.79, 0.80], seed=7)
    found = contest(100, [PRE, close, SCRATCH])
    assert found.winner is None
    assert found.against("scratch").is_clear  # type: ignore[union-attr]
    assert "against close" in found.sentence or "against pre" in found.sentence


def test_one_seed_names_none_and_says_so() -> None:
    found = contest(100, [planted("a", [0.9], seed=1), planted("b", [0.5], seed=2)])
    assert found.pairs[0].p_value < 1e-6
    assert found.winner is None
    assert "one seed has no spread, so no winner is named" in found.sentence


def test_a_floor_above_all_is_said() -> None:
    floor = planted("patch dictionary", [0.9, 0.9, 0.91], is_floor=True, seed=9)
    found = contest(100, [PRE, SCRATCH, floor])
    assert found.winner == "pre"
    assert found.floor_is_above
    assert found.floor_sentence is not None
    assert found.floor_sentence.startswith("A floor wins: patch dictionary reaches 90.3%, the best start (pre) 80.0%")
    assert claim([found]) == ("The best start is pre, but a floor wins: patch dictionary at 100", False, "pre")


@pytest.mark.parametrize(
    ("shares", "begins", "is_good"),
    [
        ([0.6, 0.6, 0.61], "The best start is above the floors", True),
        ([0.79, 0.8, 0.8], "The best start is not clearly above the floors", None),
        ([0.81, 0.8, 0.805], "A floor is ahead, though not clearly", None),
    ],
)
def test_other_floors(shares: list[float], begins: str, is_good: bool | None) -> None:
    found = contest(100, [PRE, SCRATCH, planted("k-NN", shares, is_floor=True, seed=9)])
    assert found.floor_sentence is not None
    assert found.floor_sentence.startswith(begins)
    assert claim([found]).is_good is is_good


def test_winners_that_differ_with_the_labels() -> None:
    other = contest(10, [planted("pre", [0.4, 0.41, 0.4], seed=1), planted("beit", [0.6, 0.6, 0.61], seed=2)])
    unclear = contest(5, [planted("pre", [0.4, 0.41, 0.4], seed=1), planted("beit", [0.4, 0.4, 0.41], seed=2)])
    here = contest(1000, [PRE, BEIT])
    assert claim([other, here]) == ("The best start depends on the labels: beit at 10, pre at 1,000", None, None)
    assert claim([unclear, here]).text == "The best start depends on the labels: none clearly at 5, pre at 1,000"
    assert claim([here, here._replace(labels=2000)]).best == "pre"


def test_each_image_counts_once_and_missing_ones_not() -> None:
    """By loops over images and seeds."""
    first, second = planted("a", [0.6, 0.5, 0.7], images=40, seed=1), planted("b", [0.5, 0.6, 0.4], images=40, seed=2)
    first.images[1, 3] = math.nan
    ahead = behind = 0
    for image in range(40):
        if image != 3:
            a, b = (sum(one.images[seed, image].item() for seed in range(3)) for one in (first, second))
            ahead, behind = ahead + (a > b), behind + (a < b)
    found = paired(first, second)
    assert (found.ahead, found.behind) == (ahead, behind)
    assert found.p_value == mcnemar(ahead, behind)
    assert (found.seeds_ahead, found.seeds) == (2, 3)


def test_the_interval_covers_the_true_difference() -> None:
    """Paired answers with a known difference, drawn 400 times: 95% of the intervals hold it."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        luck = torch.rand(1, 500, generator=generator)
        rows = [(luck < 0.7).double(), ((luck + torch.rand(1, 500, generator=generator)) / 2 < 0.5).double()]
        entries = [Entrant("x", False, (float(row.mean()),), row, (0.0,)) for row in rows]
        low, high = paired(*entries).image_interval
        covered += low <= 0.2 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_probe_better_than_fine_tuning_is_noted() -> None:
    found = contest(100, [BEIT._replace(probe=(0.8, 0.8, 0.8)), SCRATCH, PRE._replace(probe=(0.6, 0.6, 0.6))])
    assert [sentence.split(" has ")[0] for sentence in found.probe_sentences] == ["A probe of the frozen beit"]


def test_a_single_start_is_compared_with_floors_only() -> None:
    found = contest(100, [PRE, planted("k-NN", [0.5, 0.5, 0.5], is_floor=True, seed=4)])
    assert (found.winner, found.pairs) == (None, ())
    assert claim([found]).text == "pre was the only start"
