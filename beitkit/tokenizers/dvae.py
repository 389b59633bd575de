"""The discrete VAE: maps an image to a grid of codes and a grid of codes to an image.

The encoder gives logits over the codes at every position of the grid; the argmax is the visual token that BEiT's pre-training
predicts. In training (`objectives.reconstruct`) a Gumbel-softmax over codes replaces the argmax, so gradients reach the
encoder (arXiv 2102.12092, section 2.1). Images are floats in [0, 1]; the scaling that a geometry needs (dalle: 0.8 x + 0.1;
beit and light: [-1, 1]) happens here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.data import ValueRange
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.tokenizers.checks import check_ids, check_images
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.tokenizers.geometries import build_parts, initialize, layers_of, without_autocast

LAPLACE_EPSILON = 0.1  # DALL-E, appendix A.3: logit-Laplace sees pixels in (0.1, 0.9), where the logit is finite


class DiscreteVAE(nn.Module):
    """Encoder, codebook and decoder of one geometry; a `contracts.Tokenizer`."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary, self.stride, self.channels = config.vocabulary, config.stride, config.channels
        parts = build_parts(config)
        initialize(parts, config)
        self.encoder = parts.encoder
        self.decoder = parts.decoder
        self.codebook = parts.codebook
        self._pixel_scale = parts.pixel_scale
        self._pixel_shift = parts.pixel_shift
        self._fingerprint: tuple[tuple[tuple[int, int], ...], str] | None = None

    @property
    def value_range(self) -> ValueRange | None:
        """The values that are 0 and 1 in the images; None where they have 8 bits."""
        return self.config.value_range

    @property
    def fingerprint(self) -> str:
        """Digest (32 hex digits) of config and weights; recomputed only after a weight has changed."""
        state = self.state_dict(keep_vars=True)
        key = tuple((id(tensor), tensor._version) for tensor in state.values())
        if self._fingerprint is None or self._fingerprint[0] != key:
            self._fingerprint = (key, digest_of(self.config, state))
        return self._fingerprint[1]

    @property
    def code_layer(self) -> nn.Conv2d:
        """The 1x1 convolution that gives the logits: row i of its weight (vocabulary, width, 1, 1) belongs to code i."""
        layer = list(layers_of(self.encoder))[-1]
        assert isinstance(layer, nn.Conv2d)
        assert layer.kernel_size == (1, 1)
        return layer

    @property
    def embeddings(self) -> Float[Tensor, "v d"]:
        """The decoder's embedding of each code; a view of the parameter, so it can be written to."""
        if self.codebook is not None:
            return self.codebook.weight
        return self._first_decoder_layer().weight[:, :, 0, 0].T

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d gh gw"]:
        """Input of the code layer, from images in [0, 1]."""
        check_images(images, self.channels, self.stride)
        first, *between, _ = layers_of(self.encoder)
        x = without_autocast(first, self.normalize(images))
        for layer in between:
            x = layer(x)
        return x

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b v gh gw"]:
        """Logits over the codes at every position of the grid, from images in [0, 1]."""
        return self.code_layer(self.features(images))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b gh gw"]:
        """The visual tokens of images in [0, 1]: the argmax at each position; ties go to the lowest id.

        The logits are computed in the precision of the weights even under autocast, because near codes would tie in bfloat16.
        """
        return without_autocast(self.code_layer, self.features(images)).argmax(1)

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "b gh gw"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] from visual tokens."""
        check_ids(ids, self.vocabulary)
        embedded = F.embedding(ids, self.embeddings).permute(0, 3, 1, 2)  # (b, d, gh, gw)
        if self.codebook is None:
            bias = self._first_decoder_layer().bias
            assert bias is not None
            embedded = embedded + bias[:, None, None]
        return self.pixels(self._decode_embedded(embedded))

    def decode_relaxed(self, weights: Float[Tensor, "b v gh gw"]) -> Float[Tensor, "b o h w"]:
        """The decoder's raw output for weights over the codes at each position; input of `pixels` and the likelihoods.

        o is the number of channels, or twice it for logit-Laplace (locations, then log-scales).
        """
        if self.codebook is None:
            return self._decode_embedded(self._first_decoder_layer()(weights))
        return self._decode_embedded(torch.einsum("bvhw,vd->bdhw", weights, self.codebook.weight))

    def pixels(self, output: Float[Tensor, "b o h w"]) -> Float[Tensor, "b c h w"]:
        """The image in [0, 1] from a raw output of the decoder."""
        if self.config.reconstruction == "logit_laplace":
            x = torch.sigmoid(output[:, : self.channels])
            return ((x - LAPLACE_EPSILON) / (1 - 2 * LAPLACE_EPSILON)).clamp(0, 1)
        return ((output - self._pixel_shift) / self._pixel_scale).clamp(0, 1)

    def normalize(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] as the networks see them, the space in which squared error is measured."""
        return self._pixel_scale * images + self._pixel_shift

    def _first_decoder_layer(self) -> nn.Conv2d:
        """The layer that serves as the codebook if there is no `codebook`."""
        layer = next(layers_of(self.decoder))
        assert self.codebook is None
        assert isinstance(layer, nn.Conv2d)
        return layer

    def _decode_embedded(self, x: Tensor) -> Tensor:
        layers = list(layers_of(self.decoder))
        for layer in layers[1:] if self.codebook is None else layers:
            x = layer(x)
        return x
