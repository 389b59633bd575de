"""Masks against the paper's rules, the original code's golden masks, and exhaustive checks of settings."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beitkit.configs.data import MaskConfig
from beitkit.data.views.masking import BlockMasking, masker
from beitkit.errors import UserError

GOLDEN = {
    0: ([0, 0, 0, 7, 6, 6, 8, 8, 8, 8, 6, 6, 6, 6], [42, 43, 44, 45, 46, 47, 50, 56, 57, 58, 59, 60], 8499),
    1: ([0, 3, 3, 3, 3, 3, 4, 11, 11, 10, 8, 8, 8, 0], [18, 19, 20, 32, 33, 34, 46, 47, 48, 60, 61, 62], 8652),
    2: ([8, 7, 9, 9, 7, 5, 5, 5, 5, 5, 5, 5, 0, 0], [2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 18, 19], 5630),
}


@pytest.mark.parametrize("seed", GOLDEN)
def test_official_masks_are_the_original_ones(seed: int) -> None:
    mask = masker(MaskConfig(kind="official", ratio=75 / 196), (14, 14))(random.Random(seed))
    hidden = mask.flatten().nonzero().flatten()
    rows, first, total = GOLDEN[seed]
    assert mask.sum(1).tolist() == rows
    assert hidden[:12].tolist() == first
    assert hidden.sum() == total


def test_block_masks_are_those_of_earlier_runs() -> None:
    """600 masks by the calls of `random.Random` that the first release made: other ones would change every resumed run."""
    digest = hashlib.sha256()
    for grid in ((4, 4), (7, 7), (14, 14), (6, 11)):
        for ratio in (0.2, 0.4, 0.75):
            draw = masker(MaskConfig(ratio=ratio), grid).draw
            for seed in range(50):
                digest.update(f"{draw(random.Random(seed)):x} ".encode())
    assert digest.hexdigest()[:16] == "fd95f553e668b90f"


def test_masks_drawn_together_are_those_drawn_alone() -> None:
    draw = masker(MaskConfig(), (6, 11))
    together = draw.together(map(random.Random, range(9)))
    assert torch.equal(together, torch.stack([draw(random.Random(seed)).flatten() for seed in range(9)]))


def test_official_masks_fall_short_as_often_as_measured() -> None:
    draw, rng = masker(MaskConfig(kind="official", ratio=75 / 196), (14, 14)), random.Random(0)
    counts = torch.tensor([int(draw(rng).sum()) for _ in range(2000)])
    assert counts.max() == 75
    assert counts.float().mean() == pytest.approx(74.47, abs=0.15)
    assert (counts == 75).float().mean() == pytest.approx(0.666, abs=0.04)


@settings(deadline=None, max_examples=150)
@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    ratio=st.floats(0.05, 0.95),
    min_block=st.floats(0.005, 0.9),
    aspect=st.floats(0.05, 1.0),
    kind=st.sampled_from(["block", "official", "random"]),
    seed=st.integers(0, 99),
)
def test_a_setting_is_refused_or_meets_its_count(
    grid: tuple[int, int], ratio: float, min_block: float, aspect: float, kind: str, seed: int
) -> None:
    config = MaskConfig(kind=kind, ratio=ratio, min_block=min_block, min_aspect=aspect)  # pyright: ignore[reportArgumentType]
    try:
        draw = masker(config, grid)
    except UserError:
        return
    mask = draw(random.Random(seed))
    assert mask.shape == grid == draw.grid
    assert draw.count == round(ratio * (grid[0] * grid[1]))
    assert mask.sum() <= draw.count if kind == "official" else mask.sum() == draw.count
    assert torch.equal(mask, draw(random.Random(seed)))


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (8, 20), (4, 4), (3, 30), (30, 30)])
def test_blocks_keep_to_algorithm_1(grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block as drawn is a rectangle of legal area and aspect, and all but the last are hidden whole."""
    draw = masker(MaskConfig(), grid)
    assert isinstance(draw, BlockMasking)
    gains: list[int] = []
    original = BlockMasking._gain

    def recorded(self: BlockMasking, rng: random.Random, masked: int, budget: int) -> int:
        gains.append(original(self, rng, masked, budget))
        return gains[-1]

    monkeypatch.setattr(BlockMasking, "_gain", recorded)
    least = max(1, round(16 / 196 * grid[0] * grid[1]))
    shapes = [(h, w) for h in range(1, grid[0] + 1) for w in range(1, grid[1] + 1) if h * w >= least and 0.3 <= h / w <= 1 / 0.3]
    rectangles = {
        sum(1 << (row * grid[1] + column) for row in range(top, top + h) for column in range(left, left + w))
        for h, w in shapes
        for top in range(grid[0] - h + 1)
        for left in range(grid[1] - w + 1)
    }
    spanning = False
    for seed in range(20):
        gains.clear()
        draw(random.Random(seed))
        masked = 0
        for gain in gains[:-1]:
            assert any(block & ~masked == gain for block in rectangles)
            masked |= gain
        assert any(gains[-1] & ~block == 0 for block in rectangles)
        spanning |= any(_height(gain, grid[1]) == grid[0] for gain in gains)
    assert spanning or grid != (3, 30)  # blocks may be as high as the grid


def _height(gain: int, width: int) -> int:
    return (gain.bit_length() - 1) // width - ((gain & -gain).bit_length() - 1) // width + 1


def test_block_masks_prefer_the_center_as_much_as_the_original() -> None:
    """Method 2.2: the original hides a center patch with probability 0.715, a corner 0.04, the middle of an edge 0.19."""
    draw, rng = masker(MaskConfig(ratio=75 / 196), (14, 14)), random.Random(0)
    share = torch.stack([draw(rng) for _ in range(3000)]).float().mean(0)
    assert share[6:8, 6:8].mean() == pytest.approx(0.715, abs=0.03)
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.04, abs=0.015)
    assert share[[0, -1, 6, 6], [6, 6, 0, -1]].mean() == pytest.approx(0.19, abs=0.03)


def test_random_masks_are_uniform() -> None:
    draw, rng = masker(MaskConfig(kind="random", ratio=0.25), (3, 4)), random.Random(0)
    share = torch.stack([draw(rng) for _ in range(4000)]).float().mean(0)
    assert (share - 0.25).abs().max() < 0.04  # five standard deviations


@pytest.mark.parametrize(
    ("config", "grid", "nearest"),
    [
        (MaskConfig(ratio=0.1), (2, 2), "nearest ratio is 0.25"),
        (MaskConfig(ratio=0.9), (2, 2), "nearest ratio is 0.75"),
        (MaskConfig(), (1, 1), "smaller patches"),
        (MaskConfig(min_block=0.5), (14, 14), "lower min_block to 0.398 or raise the mask ratio to 0.5"),
        (MaskConfig(min_block=0.35), (1, 20), "lower min_block to 0.15"),
        (MaskConfig(kind="official", min_block=1.0), (4, 4), "lower min_block to 0.375"),
        (MaskConfig(kind="official"), (2, 8), "at least 3x3"),
        (MaskConfig(kind="official", min_block=0.3), (3, 30), "lower min_block to 0.1333"),
    ],
)
def test_impossible_settings_name_the_nearest_possible(config: MaskConfig, grid: tuple[int, int], nearest: str) -> None:
    with pytest.raises(UserError, match=nearest):
        masker(config, grid)


def test_what_an_error_names_works() -> None:
    masker(MaskConfig(min_block=0.398), (14, 14))
    masker(MaskConfig(min_block=0.15), (1, 20))
    masker(MaskConfig(kind="official", min_block=0.1333), (3, 30))


def test_no_masking_hides_nothing_and_draws_nothing() -> None:
    rng = random.Random(3)
    before = rng.getstate()
    mask = masker(MaskConfig(kind="none"), (4, 5))(rng)
    assert mask.shape == (4, 5)
    assert not mask.any()
    assert rng.getstate() == before
