from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from beitkit.contracts import Batch, Evaluator, Share
from beitkit.evaluation.tokens import TokenizerQuality, psnr


class EightGrays:
    """One pixel is one token: its gray value in eight steps."""

    vocabulary, stride, channels, fingerprint = 8, 1, 1, "eight grays"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Nearest step."""
        return (images[:, 0] * 7).round().long()

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """Its gray value."""
        return ids[:, None] / 7


def test_quality_of_a_known_tokenizer() -> None:
    first = torch.tensor([0.0, 1.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    second = torch.tensor([0.05, 0.0, 0.0, 3 / 7]).reshape(1, 1, 2, 2)
    broken = torch.zeros(1, 1, 2, 2)  # would add four tokens of code 0 and their error

    def batches(share: Share) -> Iterator[Batch]:
        yield {"images": torch.cat((first, broken)), "broken": torch.tensor([-1, 3])}
        yield {"images": broken, "broken": torch.tensor([4])}
        yield {"images": second, "broken": torch.tensor([-1])}

    evaluator: Evaluator = TokenizerQuality(EightGrays(), batches)
    for _ in range(2):  # a second run counts afresh
        values = dict(evaluator.run())
        assert values["psnr"] == pytest.approx(10 * math.log10(8 / 0.05**2), rel=1e-4)
        assert values["codes_used"] == 3 / 8
        assert values["commonest_share"] == 4 / 8
        assert values["perplexity"] == pytest.approx(math.exp(0.5 * math.log(2) + 3 / 8 * math.log(8 / 3) + 1 / 8 * math.log(8)))


def test_psnr() -> None:
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0.0) == math.inf
