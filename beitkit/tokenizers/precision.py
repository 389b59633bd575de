"""In which precision a frozen tokenizer computes: the fast one where it finds the tokens that float32 finds, else float32.

A token is the best of thousands of codes, and where two are nearly as good rounding decides. So whether bfloat16 will do
depends on the tokenizer and on the pictures; it is measured on some of these when a run starts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from beitkit.contracts import Tokenizer

LEAST_AGREEMENT = 0.995
"""Share of positions at which the fast precision must find the token of float32."""


class Encoder(NamedTuple):
    """A tokenizer on its device, and how it is to be used."""

    tokenizer: Tokenizer
    precision: torch.dtype | None = None
    """Of matrix products and convolutions; None is float32."""
    agreement: float | None = None
    """Share of positions at which `precision`, or the one that was given up for float32, found the token of float32; None where
    only float32 was asked for."""

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Int64[Tensor, "b gh gw"]:
        """Token ids of pictures on the tokenizer's device."""
        return _ids(self.tokenizer, images, self.precision)

    def describe(self) -> str:
        """How it computes, in words; empty for float32 that nobody tried to replace."""
        if self.agreement is None:
            return ""
        if self.precision is None:
            return f"tokenizer in float32: with bfloat16 only {self.agreement:.2%} of the tokens stay the same"
        return f"tokenizer in bfloat16: {self.agreement:.2%} of the tokens are those of float32"


@torch.no_grad()
def encoder_of(tokenizer: Tokenizer, images: UInt8[Tensor, "b c h w"], precision: torch.dtype | None) -> Encoder:
    """The tokenizer in `precision` if that agrees with float32 on these pictures, else in float32.

    Convolutions are laid out channels last, which is what their kernels read fastest.
    """
    if isinstance(tokenizer, nn.Module):
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload] - a documented overload
    if precision is None:
        return Encoder(tokenizer)
    agreement = (_ids(tokenizer, images, None) == _ids(tokenizer, images, precision)).float().mean().item()
    return Encoder(tokenizer, precision if agreement >= LEAST_AGREEMENT else None, agreement)


def _ids(tokenizer: Tokenizer, images: UInt8[Tensor, "b c h w"], precision: torch.dtype | None) -> Int64[Tensor, "b gh gw"]:
    scaled: Float[Tensor, "b c h w"] = images.to(memory_format=torch.channels_last).float().div_(255)
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        return tokenizer.encode(scaled)
