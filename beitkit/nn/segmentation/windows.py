"""Sliding-window inference: class scores of an image of any size, row by row, in bounded memory.

The scores of a large image with many classes do not fit into memory: 20 megapixels with 150 classes are 12 GB. But they are
never needed all at once. So rows are computed from top to bottom. Only the scores of windows that the next rows overlap are
kept, at the decoder's low resolution; they are upsampled and averaged for the requested rows only. The result is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.nn.segmentation.heads import map_size, resize

ScoreFunction = Callable[[Tensor], Tensor]
"""Windows (b, c, h, w) to scores (b, classes, h', w') of the whole window; pads images smaller than a window."""


class SlidingScores:
    """Class scores of one image at its own size: the average over the windows that show a pixel (method 7.5)."""

    def __init__(
        self,
        score: ScoreFunction,
        image: UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"],
        window: Pair,
        stride: Pair,
        window_batch: int,
    ) -> None:
        """Set up; windows are scored when rows are requested.

        Args:
            score: is given parts of the image, of the window's size or, where the image is smaller, of the image's.
            image: in whatever form `score` expects.
            window: (height, width) of what the network sees.
            stride: from one window to the next, down and across; at most the window.
            window_batch: windows per call of `score`.
        """
        self.size = map_size(image)
        self._score, self._image, self._window, self._window_batch = score, image, window, window_batch
        self._tops, self._lefts = (window_starts(*axis) for axis in zip(self.size, window, stride, strict=True))
        self._computed = 0
        self._live: dict[int, Tensor] = {}

    def rows(self, first: int, end: int) -> Float[Tensor, "classes rows w"]:
        """The scores of the rows from `first` to before `end`; call with non-decreasing `first`."""
        self._advance(first, end)
        (height, width), (window_height, window_width) = self.size, self._window
        some = next(iter(self._live.values()))
        total = some.new_zeros(some.shape[1], end - first, width)
        count = some.new_zeros(end - first, width)
        for top, scores in self._live.items():
            above, below = max(first, top), min(end, top + window_height, height)
            if above >= below:
                continue
            bands = resized_rows(lambda a, b, x=scores: x[..., a:b, :], scores.shape[-2], self._window, above - top, below - top)
            for left, band in zip(self._lefts, bands, strict=True):
                place = slice(above - first, below - first), slice(left, left + window_width)
                total[:, *place] += band[..., : width - left]
                count[place] += 1
        return total.div_(count)

    def _advance(self, first: int, end: int) -> None:
        """Score the rows of windows that begin above `end`, drop those that end above `first`."""
        for top in [top for top in self._live if top + self._window[0] <= first]:
            del self._live[top]
        while self._computed < len(self._tops) and self._tops[self._computed] < end:
            top = self._tops[self._computed]
            self._live[top] = self._row_of_windows(top)
            self._computed += 1

    def _row_of_windows(self, top: int) -> Float[Tensor, "windows classes _ _"]:
        height, width = self._window
        parts = [self._image[:, top : top + height, left : left + width] for left in self._lefts]
        batches = [parts[start : start + self._window_batch] for start in range(0, len(parts), self._window_batch)]
        return torch.cat([self._score(torch.stack(batch)) for batch in batches])


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis; the last one is moved back to end at the border (method 7.5)."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(0, min(index * stride, length - window)) for index in range(count)]


def resized_rows(
    source: Callable[[int, int], Float[Tensor, "... w"]], height: int, size: Pair, first: int, end: int
) -> Float[Tensor, "... ow"]:
    """The rows from `first` to before `end` of a map that is brought to `size`, bilinear, from only the rows this needs.

    Args:
        source: gives the map's rows (..., from a to before b, width).
        height: how many rows the map has.
        size: (height, width) it is brought to.
        first: first wanted row of the result.
        end: the row after the last wanted one.
    """
    centers = (torch.arange(first, end, dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5
    centers.clamp_(min=0)
    above = centers.long().clamp_(max=height - 1)
    start, stop = (min(int(max(0.0, (row + 0.5) * (height / size[0]) - 0.5)), height - 1) for row in (first, end - 1))
    stop = min(stop + 2, height)
    rows = source(start, stop)
    lowest = (above + 1).clamp_(max=height - 1)
    upper, lower = ((index - start).to(rows.device, non_blocking=True) for index in (above, lowest))
    share = (centers - above).to(rows.device, rows.dtype, non_blocking=True)[:, None]
    blended = rows[..., upper, :].lerp(rows[..., lower, :], share)
    is_batch = blended.dim() == 4
    wide = resize(blended if is_batch else blended[None], (end - first, size[1]))
    return wide if is_batch else wide[0]
