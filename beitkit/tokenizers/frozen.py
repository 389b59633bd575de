"""A frozen tokenizer, in the precision of the run if that gives the tokens of float32, else in float32.

A token is the argmax over thousands of codes, and rounding can decide between two close ones. So whether bfloat16 is good
enough depends on the tokenizer and the images; it is measured on a few of them when a run starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from beitkit.contracts import Tokenizer, autocast_type, in_unit_range, precision_name
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import evaluation_stream
from beitkit.data.tokens.key import CacheKey
from beitkit.data.views.image import PretrainView
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.kmeans import KMeansTokenizer
from beitkit.tokenizers.own import OwnTokenizer
from beitkit.tokenizers.vqkd import VQKD
from beitkit.train.machine.runtime import Runtime

TRIED_IMAGES = 16
"""The fast precision is tried on this many images, evenly spread over the list: 3,136 tokens of 14x14 each."""

LEAST_AGREEMENT = 0.995
"""Least share of tokens that have to agree with float32."""

TokenizerNetwork = DiscreteVAE | VQKD | KMeansTokenizer


class Encoder(NamedTuple):
    """A tokenizer on its device with its precision; make one with `laid_out` or `encoder_of`."""

    tokenizer: Tokenizer
    precision: torch.dtype | None
    """Of matrix products and convolutions; None is float32."""
    agreement: float | None = None
    """Share of tokens that agreed with float32; None if only float32 was considered."""
    tried: torch.dtype | None = None
    """The precision that was compared with it."""

    @classmethod
    def laid_out(cls, tokenizer: Tokenizer, precision: torch.dtype | None = None) -> Encoder:
        """The tokenizer in this precision, its convolutions in channels-last layout, the fastest for their kernels."""
        if isinstance(tokenizer, nn.Module):
            tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload] - documented, but not declared
        return cls(tokenizer, precision)

    @torch.no_grad()
    def __call__(self, images: Shaped[Tensor, "b c h w"]) -> Int64[Tensor, "b gh gw"]:
        """Token ids of images on the tokenizer's device, uint8 or floats in [0, 1]."""
        scaled = in_unit_range(images.contiguous(memory_format=torch.channels_last))
        with full_float32(), torch.autocast(images.device.type, dtype=self.precision, enabled=self.precision is not None):
            return self.tokenizer.encode(scaled)

    def describe(self) -> str:
        """Precision in words; empty if only float32 was considered."""
        if self.agreement is None:
            return ""
        if self.precision is None:
            tried = precision_name(self.tried)
            return f"tokenizer in float32: in {tried} only {self.agreement:.2%} of the tokens tried stay the same"
        return f"tokenizer in {precision_name(self.precision)}: {self.agreement:.2%} of the tokens tried are those of float32"


@contextmanager
def full_float32() -> Iterator[None]:
    """Without TF32, which has 10 bits of mantissa for float32's 23, and by which PyTorch computes float32 convolutions on GPUs.

    Tokens would be others than those of a CPU, under the same key of a cache. cuDNN tries its kernels and takes the fastest.
    """
    settings = [(torch.backends.cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False)]
    settings += [(torch.backends.cudnn, "benchmark", True)]
    before = [getattr(owner, name) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def encoder_of(tokenizer: Tokenizer, images: Shaped[Tensor, "b c h w"], precision: torch.dtype | None) -> Encoder:
    """The tokenizer in `precision` if that agrees with float32 on these images, else in float32."""
    exact = Encoder.laid_out(tokenizer)
    if precision is None:
        return exact
    fast = Encoder(tokenizer, precision)
    agreement = (exact(images) == fast(images)).float().mean().item()
    return (fast if agreement >= LEAST_AGREEMENT else exact)._replace(agreement=agreement, tried=precision)


def token_encoder(
    tokenizer: TokenizerNetwork | OwnTokenizer, files: ImageList, key: CacheKey, runtime: Runtime, begun: CacheKey | None = None
) -> Encoder:
    """The tokenizer, moved to the device; all ranks, and all starts of a run, decide on the same views.

    Of `key`, the number of views and the precision do not matter. The precision of `begun`, the key of an existing token cache,
    is kept.
    """
    if isinstance(tokenizer, OwnTokenizer):
        return Encoder(tokenizer, None)  # what it computes in is its own affair
    tokenizer.to(runtime.device)
    if begun is not None:
        return Encoder.laid_out(tokenizer, autocast_type(begun.precision))
    chosen = files.evenly_spread(TRIED_IMAGES)
    dataset = ImageDataset(
        chosen,
        PretrainView(key.view, key.image_size, key.token_size, only_tokens=True),
        channels=key.channels,
        value_range=tokenizer.value_range,
        seed=key.seed,
        kind="evaluate",
        smallest=key.patch,
    )
    images = torch.cat([batch["token_images"] for batch in evaluation_stream(dataset, len(chosen))])
    return encoder_of(tokenizer, images.to(runtime.device), runtime.autocast)
