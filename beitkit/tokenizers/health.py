"""Codebook usage statistics of a tokenizer, and diagnoses with what to do about each.

A masked-image model can learn only what the tokens carry: with few codes in use, or one that is nearly always right, there is
little to predict; with very many codes for few images, most are too rare to be learned.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from beitkit.configs.tokenizer import TokenizerKind

MIN_USED_SHARE = 0.75
MAX_COMMONEST_SHARE = 0.6
"""Half of Fashion-MNIST is empty background, which should be one code; above this share, always predicting it is too good."""
MIN_PSNR = 16.0
"""In dB; the mean color of each cell alone gives about that at stride 4."""
MIN_TOKENS_PER_CODE = 50


class UsageStatistics(NamedTuple):
    """Usage of the codes over a number of tokens."""

    vocabulary: int
    tokens: int
    codes_used: int
    """Codes chosen at least once."""
    used_share: float
    """`codes_used` as a share of the vocabulary."""
    dead_codes: int
    """Codes never chosen."""
    perplexity: float
    """exp(entropy) of the codes' frequencies: the number of equally frequent codes that would be as varied."""
    commonest_code: int
    commonest_share: float
    """Share of all tokens that is the commonest code: the accuracy of always guessing it."""


def code_counts(ids: Int[Tensor, "*shape"], vocabulary: int) -> Int[Tensor, " vocabulary"]:
    """How often each code was chosen, as `torch.bincount` counts, for which a GPU's host would have to wait."""
    flat = ids.flatten()
    return torch.zeros(vocabulary, dtype=torch.int64, device=flat.device).index_add_(0, flat, torch.ones_like(flat))


def perplexity(shares: Float[Tensor, " codes"]) -> Float[Tensor, ""]:
    """exp(entropy) of frequencies that add up to 1."""
    return torch.special.entr(shares).sum().exp()


class CodeUsage:
    """Counts codes over batches."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.counts: Tensor | None = None

    def update(self, ids: Int[Tensor, "*shape"]) -> None:
        """Count the tokens of one batch, of any shape."""
        counts = code_counts(ids, self.vocabulary)
        self.counts = counts if self.counts is None else self.counts + counts

    def statistics(self) -> UsageStatistics:
        """The statistics of everything counted so far; needs at least one token."""
        assert self.counts is not None
        counts = self.counts.cpu().double()
        tokens = counts.sum()
        shares = counts / tokens
        codes_used = int((counts > 0).sum())
        return UsageStatistics(
            vocabulary=self.vocabulary,
            tokens=int(tokens),
            codes_used=codes_used,
            used_share=codes_used / self.vocabulary,
            dead_codes=self.vocabulary - codes_used,
            perplexity=float(perplexity(shares)),
            commonest_code=int(counts.argmax()),
            commonest_share=float(shares.max()),
        )


class Diagnosis(NamedTuple):
    """A problem of a tokenizer: its name, one sentence, and what to do."""

    name: Literal["codes dead", "one token dominates", "reconstruction poor", "vocabulary too large for so few patches"]
    finding: str
    advice: str


class Advice(NamedTuple):
    """What to do about a problem of one kind of tokenizer."""

    dead: str
    dominates: str
    poor: str | None
    """None where the reconstructions say nothing about the tokens."""


ADVICE: dict[TokenizerKind, Advice] = {
    "dvae": Advice(
        "Train longer, keep revival and the start from data on, or use a smaller vocabulary.",
        "Crop away empty borders, use a smaller stride or a larger vocabulary, or lower the KL weight.",
        "Train longer, or use a larger vocabulary, more hidden channels or a smaller stride.",
    ),
    "kmeans": Advice(
        "Use a smaller vocabulary, or images and crops (`view`) more like those that are judged.",
        "Crop away empty borders, or use a larger margin.",
        None,
    ),
}


def diagnose(statistics: UsageStatistics, psnr: float, kind: TokenizerKind = "dvae") -> list[Diagnosis]:
    """Problems of a tokenizer with this code usage and reconstruction quality (dB); empty if there are none."""
    advice = ADVICE[kind]
    found: dict[Diagnosis, bool] = {
        Diagnosis(
            "vocabulary too large for so few patches",
            f"There are {statistics.tokens:,} patches for {statistics.vocabulary:,} codes: under {MIN_TOKENS_PER_CODE} each.",
            f"Use a vocabulary of at most {max(2, statistics.tokens // MIN_TOKENS_PER_CODE):,}, or more images.",
        ): statistics.tokens < MIN_TOKENS_PER_CODE * statistics.vocabulary,
        Diagnosis(
            "codes dead",
            f"{statistics.dead_codes:,} of {statistics.vocabulary:,} codes were never chosen.",
            advice.dead,
        ): statistics.used_share < MIN_USED_SHARE,
        Diagnosis(
            "one token dominates",
            f"Code {statistics.commonest_code} is {statistics.commonest_share:.0%} of all tokens: guessing it pays.",
            advice.dominates,
        ): statistics.commonest_share > MAX_COMMONEST_SHARE,
        Diagnosis(
            "reconstruction poor",
            f"Images decoded from their own tokens have {psnr:.1f} dB PSNR, less than {MIN_PSNR:.0f}.",
            advice.poor or "",
        ): advice.poor is not None and psnr < MIN_PSNR,
    }
    return [diagnosis for diagnosis, is_found in found.items() if is_found]
