"""Labels of an image that is larger than its scores, without the scores of most of its pixels; for CPUs.

Between four neighboring scores that all have the same best class, that class is best everywhere: bilinear scores are weighted
means of the four. So only pixels between scores that disagree are scored, which a trained network leaves few of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.nn.segmentation.windows import SlidingScores

BAND_BYTES = 64 << 20
"""Limit on the scores in memory at once, those of the source and those of pixels alike."""
SAMPLED = 4096
"""Pixels of a class, of those that no sample falls on, whose certainty is computed."""


class Between(NamedTuple):
    """Where the pixels of one axis lie between the scores."""

    before: Int64[Tensor, " n"]
    after: Int64[Tensor, " n"]
    share: Float[Tensor, " n"]
    """How far from the first to the second."""

    @classmethod
    def of(cls, length: int, size: int, first: int, end: int) -> Between:
        """Pixels `first` to before `end` of `size`, between `length` scores; corners not aligned."""
        centers = ((torch.arange(first, end, dtype=torch.float64) + 0.5) * (length / size) - 0.5).clamp_(min=0)
        before = centers.long().clamp_(max=length - 1)
        return cls(before, (before + 1).clamp_(max=length - 1), centers - before)


class LabeledBand:
    """Rows of the image with their labels."""

    def __init__(self, first: int, rows: Float[Tensor, "classes n w"], down: Between, across: Between) -> None:
        """`rows` are the scores from the one before the first pixel on, which `down` counts from."""
        self.first = first
        self.is_finite = rows.isfinite().all()
        self._width, self._down, self._across = rows.shape[2], down, across
        self._scores = rows.permute(1, 2, 0).flatten(0, 1).contiguous()  # (n * w, classes): what a pixel needs lies together
        best = self._scores.argmax(1).to(torch.uint8).view(rows.shape[1:])
        beside = torch.cat((best[:, 1:], best[:, -1:]), 1)
        agree = best == beside
        agree &= torch.cat((agree[1:] & (best[1:] == best[:-1]), agree[-1:]))
        self.labels: UInt8[Tensor, "rows width"] = best[down.before][:, across.before]
        flat = self.labels.view(-1)
        torn = (~agree)[down.before][:, across.before].view(-1).nonzero()[:, 0]
        for pixels in torn.split(self._at_once):
            flat[pixels] = self.scores(pixels).argmax(1).to(torch.uint8)

    @property
    def _at_once(self) -> int:
        return max(1, BAND_BYTES // (4 * self._scores.element_size() * self._scores.shape[1]))

    def scores(self, pixels: Int64[Tensor, " p"]) -> Float[Tensor, "p classes"]:
        """The bilinear scores of pixels, counted along the rows of the band."""
        row, column = pixels.div(len(self._across.before), rounding_mode="floor"), pixels % len(self._across.before)
        above, below, left, right = (
            index[at]
            for index, at in (
                (self._down.before * self._width, row),
                (self._down.after * self._width, row),
                (self._across.before, column),
                (self._across.after, column),
            )
        )
        downward, rightward = (
            axis.share.to(self._scores.dtype)[at][:, None] for axis, at in ((self._down, row), (self._across, column))
        )
        sides = [
            self._scores.index_select(0, above + side).lerp_(self._scores.index_select(0, below + side), downward)
            for side in (left, right)
        ]
        return sides[0].lerp_(sides[1], rightward)

    def certainty(self, classes: int, step: Pair) -> Float[Tensor, "classes 2"]:
        """For each class its pixels here, and the sum of their probabilities.

        Every `step`th row and column is computed and stands for all pixels of its class; where none falls on a class, some of its
        own do.
        """
        height, width = self.labels.shape
        grid = torch.arange(0, height, step[0])[:, None] * width + torch.arange(0, width, step[1])
        mean = self._probabilities(grid.flatten(), classes)
        flat = self.labels.view(-1)
        count = torch.bincount(flat, minlength=classes).double()
        for label in (mean.isnan() & (count > 0)).nonzero()[:, 0].tolist():
            own = (flat == label).nonzero()[:, 0]
            mean[label] = self._probabilities(own[:: -(-len(own) // SAMPLED)], classes)[label]
        return torch.stack((count, count * mean.nan_to_num()), 1)

    def _probabilities(self, pixels: Int64[Tensor, " p"], classes: int) -> Float[Tensor, " classes"]:
        """Mean probability of each class over those of these pixels that are labeled with it; NaN without any."""
        total, count = torch.zeros(2, classes, dtype=torch.float64)
        for some in pixels.split(self._at_once):
            labels = self.labels.view(-1)[some].long()
            scores = self.scores(some)
            sure = (scores.gather(1, labels[:, None])[:, 0] - scores.logsumexp(1)).exp_()
            total.index_add_(0, labels, sure.double())
            count += torch.bincount(labels, minlength=classes)
        return total / count


def labeled_bands(scores: SlidingScores, classes: int, size: Pair) -> Iterator[LabeledBand]:
    """The image from top to bottom, at a `size` of at least that of the scores."""
    (height, width), (source_height, source_width) = size, scores.size
    across = Between.of(source_width, width, 0, width)
    # Two rows of scores more than a band's share of them, and some numbers for each of its pixels.
    most = max(1, BAND_BYTES // (8 * classes * source_width) - 2) * height // source_height
    rows = max(1, min(most, BAND_BYTES // (32 * width)))
    for first in range(0, height, rows):
        down = Between.of(source_height, height, first, min(first + rows, height))
        start, stop = int(down.before[0]), int(down.after[-1]) + 1
        shifted = down._replace(before=down.before - start, after=down.after - start)
        yield LabeledBand(first, scores.rows(start, stop), shifted, across)


def sampled_step(source: int, size: int) -> int:
    """Pixels from one sample to the next, at most half as far as from one score to the next."""
    return max(1, size // (2 * source))
