"""In which precision a frozen tokenizer computes: the fast one where it finds the tokens that float32 finds, else float32.

A token is the best of thousands of codes, and where two are nearly as good rounding decides. So whether bfloat16 will do
depends on the tokenizer and on the pictures; it is measured on some of these when a run starts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from beitkit.contracts import Tokenizer

LEAST_AGREEMENT = 0.995
"""Share of positions at which the fast precision must find the token of float32."""


class Encoder(NamedTuple):
    """A tokenizer on its device, and how it is to be used; make one with `laid_out` or `encoder_of`."""

    tokenizer: Tokenizer
    precision: torch.dtype | None
    """Of matrix products and convolutions; None is float32."""
    agreement: float | None = None
    """Share of positions at which the fast precision found the token of float32, where it was tried."""

    @classmethod
    def laid_out(cls, tokenizer: Tokenizer, precision: torch.dtype | None = None) -> Encoder:
        """The tokenizer in this precision, its convolutions channels last, which is what their kernels read fastest."""
        if isinstance(tokenizer, nn.Module):
            tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload] - documented, but not declared
        return cls(tokenizer, precision)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Int64[Tensor, "b gh gw"]:
        """Token ids of pictures on the tokenizer's device."""
        scaled = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        with torch.autocast(images.device.type, dtype=self.precision, enabled=self.precision is not None):
            return self.tokenizer.encode(scaled)

    def describe(self) -> str:
        """How it computes, in words; empty for float32 that nobody tried to replace."""
        if self.agreement is None:
            return ""
        if self.precision is None:
            return f"tokenizer in float32: in bfloat16 only {self.agreement:.2%} of the tokens tried stay the same"
        return f"tokenizer in bfloat16: {self.agreement:.2%} of the tokens tried are those of float32"


def encoder_of(tokenizer: Tokenizer, images: UInt8[Tensor, "b c h w"], precision: torch.dtype | None) -> Encoder:
    """The tokenizer in `precision` if that agrees with float32 on these pictures, else in float32."""
    exact = Encoder.laid_out(tokenizer)
    if precision is None:
        return exact
    fast = Encoder(tokenizer, precision)
    agreement = (exact(images) == fast(images)).float().mean().item()
    return (fast if agreement >= LEAST_AGREEMENT else exact)._replace(agreement=agreement)
