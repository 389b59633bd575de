"""Tokenizer metrics on held-out images: PSNR of reconstructions and codebook usage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from beitkit.contracts import Batch, Tokenizer
from beitkit.tokenizers.health import CodeUsage


class TokenizerQuality:
    """PSNR of decode(encode(x)), codes used, perplexity, and the share of the commonest token; a `contracts.Evaluator`."""

    name = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, batches: Callable[[], Iterable[Batch]]) -> None:
        """`batches()` makes one pass over batches with `images` in [0, 1] and `broken`, on the tokenizer's device."""
        self.tokenizer = tokenizer
        self.batches = batches
        self.usage = CodeUsage(tokenizer.vocabulary)

    @torch.no_grad()
    def run(self) -> Iterator[tuple[str, float]]:
        """Yield psnr (dB, of the squared error over all pixels), codes_used (share), perplexity, commonest_share.

        Afterward `usage` holds the counts, for `health.diagnose`.
        """
        self.usage = CodeUsage(self.tokenizer.vocabulary)
        squared_error, num_values = 0.0, 0
        for batch in self.batches():
            images = batch["images"][batch["broken"] < 0]
            if not len(images):
                continue
            ids = self.tokenizer.encode(images)
            self.usage.update(ids)
            squared_error += float((self.tokenizer.decode(ids) - images).square().sum(dtype=torch.float64))
            num_values += images.numel()
        assert num_values, "an evaluation needs at least one image"
        statistics = self.usage.statistics()
        yield "psnr", psnr(squared_error / num_values)
        yield "codes_used", statistics.used_share
        yield "perplexity", statistics.perplexity
        yield "commonest_share", statistics.commonest_share


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: infinite for none."""
    return -10 * math.log10(mean_squared_error) if mean_squared_error else math.inf
