"""VQ-KD, BEiT v2's tokenizer: codes from which a small decoder predicts a teacher network's features.

A discrete VAE learns codes that reconstruct pixels; VQ-KD (vector-quantized knowledge distillation, arXiv 2208.06366, section
2.2) learns codes that reconstruct the patch features of CLIP or DINO, so they are semantic rather than about color. Encoder and
decoder are backbones; the decoder's "image" is the grid of codes, with patches of one cell.

Parameter names are the official ones with two exceptions: the backbones' `fc_norm`, applied to every patch, is their final
`norm` here, and `quantize.embedding.weight`, `quantize.embedding.initted` and `quantize.cluster_size` are `codebook.codes`,
`codebook.is_started` and `codebook.usage` (the official `quantize.embedding.cluster_size` and `.embed_avg` are never used).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beitkit.configs.data import ValueRange
from beitkit.configs.tokenizer import VQKDConfig
from beitkit.contracts import pixel_statistics
from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone, Features, truncated_normal_
from beitkit.nn.shapes import autocast_off
from beitkit.tokenizers.codebook import Codebook, Quantized
from beitkit.tokenizers.fingerprint import digest_of


class Distilled(NamedTuple):
    """Output in training: predicted teacher features, and the commitment loss."""

    features: Float[Tensor, "b n t"]
    ids: Int[Tensor, "b gh gw"]
    commitment: Float[Tensor, ""]


class VQKD(nn.Module):
    """Encoder, codebook and decoder; a `contracts.Tokenizer` that cannot decode to pixels."""

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary, self.stride, self.channels = config.vocabulary, config.stride, config.channels
        width = config.encoder.width
        self.encoder = Backbone(config.encoder)
        self.encode_task_layer = _task_layer(width, config.code_dim)
        self.codebook = Codebook(
            config.vocabulary, config.code_dim, decay=config.code_decay, start_from_data=config.start_from_data
        )
        self.decoder = Backbone(config.decoder)
        self.decode_task_layer = _task_layer(width, config.target_dim)

    @property
    def value_range(self) -> ValueRange | None:
        """The values that are 0 and 1 in the images; None where they have 8 bits."""
        return self.config.preprocessing.value_range

    @property
    def fingerprint(self) -> str:
        """Digest (32 hex digits) of config and of the weights that ids depend on."""
        decisive = ("encoder.", "encode_task_layer.", "codebook.codes")
        return digest_of(self.config, {name: value for name, value in self.state_dict().items() if name.startswith(decisive)})

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b gh gw"]:
        """The visual tokens of images in [0, 1] of the configured size."""
        patches = self.encoder(self._normalize(images))
        with autocast_off(images.device):
            return self.codebook.lookup(self._code_vectors(patches))

    def decode(self, ids: Int[Tensor, "b gh gw"]) -> Float[Tensor, "b c h w"]:
        """Not supported: the codes cannot be decoded to pixels.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"VQ-KD tokens stand for a teacher's features, not for pixels, so no images can be made of {tuple(ids.shape)} ids; "
            "for reconstructions use a discrete VAE as `tokenizer`"
        )

    def quantize(self, images: Float[Tensor, "b c h w"]) -> Quantized:
        """The codes of images in [0, 1], as vectors and as ids; in training mode the codebook is updated."""
        patches = self.encoder(self._normalize(images))
        # Near codes would tie in bfloat16, so from here on everything is in the precision of the weights (official code).
        with autocast_off(images.device):
            return self.codebook(self._code_vectors(patches))

    def predict_features(self, vectors: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b n t"]:
        """The teacher's patch features that the decoder predicts from code vectors."""
        return self.decode_task_layer(self.decoder(vectors).patches)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Distilled:
        """Images in [0, 1] through encoder, codebook and decoder."""
        quantized = self.quantize(images)
        return Distilled(self.predict_features(quantized.vectors), quantized.ids, quantized.commitment)

    def _code_vectors(self, features: Features) -> Tensor:
        patches = features.patches.to(self.codebook.codes.dtype)
        return self.encode_task_layer(patches).transpose(1, 2).unflatten(2, features.grid)  # (b, d, gh, gw)

    def _normalize(self, images: Tensor) -> Tensor:
        preprocessing = self.config.preprocessing
        mean, std = pixel_statistics(preprocessing.mean, preprocessing.std, self.channels, images)
        return (images - mean) / std


def _task_layer(width: int, outputs: int) -> nn.Sequential:
    """Linear, tanh, linear; starts like the backbone's linear layers."""
    layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            truncated_normal_(layer.weight, 2.0)
            nn.init.zeros_(layer.bias)
    return layers
