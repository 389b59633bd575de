"""Tokenizer metrics on held-out images: PSNR of reconstructions and codebook usage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from beitkit.contracts import WHOLE, Batch, Share, Tokenizer
from beitkit.tokenizers.health import CodeUsage


class TokenizerQuality:
    """PSNR of decode(encode(x)), codes used, perplexity, and the share of the commonest token; a `contracts.Evaluator`."""

    name = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, batches: Callable[[Share], Iterable[Batch]]) -> None:
        """`batches` makes a share of a pass over batches with `images` in [0, 1] and `broken`, on the tokenizer's device."""
        self.tokenizer = tokenizer
        self.batches = batches
        self.usage = CodeUsage(tokenizer.vocabulary)

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield psnr (dB, of the squared error over all pixels), codes_used (share), perplexity, commonest_share.

        Afterward `usage` holds the counts, for `health.diagnose`.
        """
        self.usage = CodeUsage(self.tokenizer.vocabulary)
        parts = share.together(self._judged(batch) for batch in self.batches(share))
        if parts is None:
            return
        squared_error, num_values = (sum(column) for column in zip(*((error, values) for error, values, _ in parts), strict=True))
        for _, _, ids in parts:
            self.usage.update(ids)
        assert num_values, "an evaluation needs at least one image"
        statistics = self.usage.statistics()
        yield "psnr", psnr(squared_error / num_values)
        yield "codes_used", statistics.used_share
        yield "perplexity", statistics.perplexity
        yield "commonest_share", statistics.commonest_share

    @torch.no_grad()
    def _judged(self, batch: Batch) -> tuple[float, int, Tensor]:
        """Summed squared error, number of values, and tokens of a batch."""
        images = batch["images"][batch["broken"] < 0]
        if not len(images):
            return 0.0, 0, torch.zeros(0, dtype=torch.int64)
        ids = self.tokenizer.encode(images)
        error = float((self.tokenizer.decode(ids) - images).square().sum(dtype=torch.float64))
        return error, images.numel(), ids.cpu()


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: infinite for none."""
    return -10 * math.log10(mean_squared_error) if mean_squared_error else math.inf
