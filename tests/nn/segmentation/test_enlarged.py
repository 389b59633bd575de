"""Labels of enlarged images from few of their scores, against the argmax of all of them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beitkit.nn.segmentation import enlarged as module
from beitkit.nn.segmentation.enlarged import LabeledBand, labeled_bands, sampled_step
from beitkit.nn.segmentation.windows import SlidingScores

CLASSES = 6


def scores_of(height: int, width: int, *, smoothness: int, seed: int) -> SlidingScores:
    """Scores whose best class changes every `smoothness` pixels or so, of an image of this size, in one window."""
    coarse = (1, CLASSES, -(-height // smoothness), -(-width // smoothness))
    drawn = 3 * torch.randn(coarse, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = F.interpolate(drawn, size=(height, width), mode="bicubic")
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    return SlidingScores(lambda parts: scores.expand(len(parts), -1, -1, -1), image, (height, width), (height, width), 1)


def enlarged(scores: SlidingScores, size: tuple[int, int]) -> Tensor:
    """All of them, by PyTorch."""
    return F.interpolate(scores.rows(0, scores.size[0])[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("smoothness", [1, 4])
@pytest.mark.parametrize(("source", "size"), [((9, 7), (50, 64)), ((12, 20), (12, 33)), ((1, 5), (8, 5)), ((1, 1), (3, 4))])
def test_labels_are_those_of_all_scores(
    source: tuple[int, int], size: tuple[int, int], smoothness: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BAND_BYTES", 8 * 3 * CLASSES * source[1] * 2)
    scores = scores_of(*source, smoothness=smoothness, seed=seed)
    expected = enlarged(scores, size).argmax(0)
    bands = list(labeled_bands(scores, CLASSES, size))
    assert size[0] < 10 or len(bands) > 1
    assert torch.equal(torch.cat([band.labels for band in bands]).long(), expected)


def test_few_pixels_are_scored_where_the_best_class_seldom_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    scored, real = 0, LabeledBand.scores

    def counting(band: LabeledBand, pixels: Tensor) -> Tensor:
        nonlocal scored
        scored += len(pixels)
        return real(band, pixels)

    monkeypatch.setattr(LabeledBand, "scores", counting)
    scores = scores_of(40, 40, smoothness=20, seed=1)
    labels = torch.cat([band.labels for band in labeled_bands(scores, CLASSES, (200, 200))])
    assert len(labels.unique()) >= 2
    assert 0 < scored < 0.2 * labels.numel()


@pytest.mark.parametrize(("size", "tolerance"), [((60, 60), 1e-12), ((330, 250), 0.01)])
def test_certainty_is_the_mean_probability(size: tuple[int, int], tolerance: float) -> None:
    scores = scores_of(31, 31, smoothness=8, seed=2)
    step = sampled_step(31, size[0]), sampled_step(31, size[1])
    assert step == ((1, 1) if size == (60, 60) else (5, 4))
    found = torch.stack([band.certainty(CLASSES, step) for band in labeled_bands(scores, CLASSES, size)]).sum(0)
    best = enlarged(scores, size).softmax(0).max(0)
    for label in best.indices.unique().tolist():
        own = best.values[best.indices == label]
        assert int(found[label, 0]) == len(own)
        assert float(found[label, 1]) / len(own) == pytest.approx(float(own.mean()), abs=tolerance)
    assert int(found[:, 0].sum()) == size[0] * size[1]


def test_a_class_that_no_sample_falls_on_has_its_own_certainty() -> None:
    grid = torch.full((2, 7, 7), -2.0, dtype=torch.float64)
    grid[0], grid[1, 3, 3] = 1.0, 9.0  # one score of another class, in the middle
    scores = SlidingScores(lambda parts: grid[None], torch.zeros(1, 7, 7, dtype=torch.uint8), (7, 7), (7, 7), 1)
    (band,) = labeled_bands(scores, 2, (70, 70))
    best = enlarged(scores, (70, 70)).softmax(0).max(0)
    found, own = band.certainty(2, (69, 69)), best.values[best.indices == 1]
    assert found[1].tolist() == pytest.approx([len(own), float(own.sum())])
