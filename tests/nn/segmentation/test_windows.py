"""Sliding windows against the plain formula that keeps everything, and against the official code's value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.model import BackboneConfig, SegmenterConfig
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.nn.segmentation.windows import SlidingScores, resized_rows, window_starts


@torch.no_grad()
def test_golden_h_slid_over_a_larger_image(golden_fill: Callable[..., Segmenter], golden_input: Callable[..., Tensor]) -> None:
    backbone = BackboneConfig(
        width=24,
        depth=4,
        heads=4,
        hidden=96,
        image_size=(64, 64),
        patch=(16, 16),
        relative_positions="per_block",
        final_norm=False,
    )
    config = SegmenterConfig(backbone=backbone, classes=tuple("abcdefg"), channels=16, auxiliary_channels=8)
    official = {"pyramid.": "backbone.", "backbone.": "backbone."}
    model = golden_fill(Segmenter(config), official, raised=("bn.weight", "running_var", "backbone.fpn1.1.weight"))
    image = golden_input(1, 3, 96, 80)[0]
    scores = SlidingScores(model.coarse_logits, image, (64, 64), (42, 42), 3)
    found = torch.cat([scores.rows(first, first + 8) for first in range(0, 96, 8)], dim=1)
    assert found.shape == (7, 96, 80)
    assert float(found.sum()) == pytest.approx(-63961.30134835, rel=1e-6)
    assert float(found.abs().sum()) == pytest.approx(64604.20554633, rel=1e-6)


def coarse(images: Tensor) -> Tensor:
    """A stand-in for a network: four scores that depend on the whole window, at a quarter of its resolution."""
    small = F.avg_pool2d(F.pad(images, (0, (-images.shape[-1]) % 4, 0, (-images.shape[-2]) % 4)), 4)
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.cat((small, small[:, :1] * mean + small[:, 1:2].sin()), dim=1)


def plain(image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """All scores at once, as in the official code; the image is padded to at least a window, the padding cut off."""
    height, width = image.shape[1:]
    padded = F.pad(image, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    total, count = torch.zeros(4, *padded.shape[1:], dtype=torch.float64), torch.zeros(padded.shape[1:])
    grids = [max(padded.shape[1 + axis] - window[axis] + stride[axis] - 1, 0) // stride[axis] + 1 for axis in (0, 1)]
    for row in range(grids[0]):
        for column in range(grids[1]):
            bottom = min(row * stride[0] + window[0], padded.shape[1])
            right = min(column * stride[1] + window[1], padded.shape[2])
            place = slice(bottom - window[0], bottom), slice(right - window[1], right)
            scores = coarse(padded[:, *place][None])
            total[:, *place] += F.interpolate(scores, size=window, mode="bilinear", align_corners=False)[0]
            count[place] += 1
    assert count.min() >= 1
    return (total / count)[:, :height, :width]


def padding(window: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    return lambda parts: coarse(F.pad(parts, (0, window[1] - parts.shape[-1], 0, window[0] - parts.shape[-2])))


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((40, 56), (16, 16), (10, 10)),
        ((33, 47), (16, 24), (16, 5)),
        ((16, 16), (16, 16), (10, 10)),
        ((9, 50), (16, 16), (10, 10)),
        ((50, 7), (16, 16), (3, 3)),
        ((1, 1), (16, 16), (10, 10)),
    ],
)
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_bands_equal_the_plain_formula(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], rows: int
) -> None:
    image = torch.randn(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = SlidingScores(padding(window), image, window, stride, 4)
    bands = [scores.rows(first, min(first + rows, size[0])) for first in range(0, size[0], rows)]
    torch.testing.assert_close(torch.cat(bands, dim=1), plain(image, window, stride))


def test_each_window_is_computed_once_and_few_are_kept() -> None:
    given: list[int] = []

    def score(parts: Tensor) -> Tensor:
        given.append(len(parts))
        return parts[:, :1, ::4, ::4]

    scores = SlidingScores(score, torch.zeros(3, 400, 64), (16, 16), (10, 10), 4)
    kept = 0
    for first in range(0, 400, 3):
        scores.rows(first, min(first + 3, 400))
        kept = max(kept, len(scores._live))
    assert len(window_starts(400, 16, 10)) == 40
    assert given == [4, 2] * 40  # six windows across
    assert kept == 3


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (512, 512, 341, [0]),
        (513, 512, 341, [0, 1]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (300, 512, 341, [0]),
        (2048, 640, 426, [0, 426, 852, 1278, 1408]),
    ],
)
def test_where_windows_begin(length: int, window: int, stride: int, starts: list[int]) -> None:
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize("old", [(1, 1), (5, 7), (12, 30)])
@pytest.mark.parametrize("new", [(1, 1), (12, 30), (31, 4), (5, 7), (3, 64)])
def test_resized_rows_are_rows_of_the_resized_map(old: tuple[int, int], new: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(x, size=new, mode="bilinear", align_corners=False)
    asked: list[tuple[int, int]] = []

    def source(start: int, stop: int) -> Tensor:
        asked.append((start, stop))
        return x[..., start:stop, :]

    for first in range(new[0]):
        end = min(first + 2, new[0])
        torch.testing.assert_close(resized_rows(source, old[0], new, first, end), whole[..., first:end, :])
    assert all(0 <= start < stop <= old[0] for start, stop in asked)
    assert asked == sorted(asked)  # downwards only
