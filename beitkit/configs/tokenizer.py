"""Configs of tokenizers: discrete VAEs, VQ-KD, k-means of patches, and training of a discrete VAE."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import tyro

from beitkit.configs.bounds import Bounds, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share, config
from beitkit.configs.codec import later
from beitkit.configs.data import INCEPTION, Channels, Preprocessing, ValueRange, check_range
from beitkit.configs.model import BackboneConfig
from beitkit.errors import UserError

Geometry = Literal["light", "beit", "dalle"]


@config("dvae")
class DVAEConfig:
    """A discrete VAE: how large, how many codes, how many pixels one code stands for."""

    geometry: Geometry = "light"
    """light: small, for small images and backbones; beit: BEiT's own DiscreteVAE; dalle: DALL-E's encoder and decoder."""
    vocabulary: Annotated[int, Bounds(ge=2)] = 1024
    """Number of codes; a few hundred are enough for small images (published: 8192)."""
    stride: int = 8
    """Pixels per code, along each axis; a power of two (always 8 for dalle)."""
    hidden: Annotated[int, Bounds(ge=4)] = 128
    """Base width of the convolutions. light: on the token grid, halving toward the pixels; beit: everywhere (published: 256);
    dalle: n_hid, of the first group (published: 256)."""
    codebook_dim: PositiveInt = 128
    """Width of a code's embedding (beit, published: 512); dalle: n_init, the decoder's first width (published: 128)."""
    channels: Channels = 3
    """Of the images, 1 to 16."""
    value_range: Annotated[ValueRange | None, tyro.conf.Suppress] = later(None)
    """The values that are 0 and 1 in the images it was trained on; None where they have 8 bits."""
    reconstruction: Literal["mse", "logit_laplace"] = "mse"
    """mse, or DALL-E's logit-Laplace likelihood, for which the decoder puts out a location and a scale per channel."""

    def __post_init__(self) -> None:
        if self.stride < 2 or self.stride & (self.stride - 1):
            raise UserError(f"`dvae.stride` must be a power of two of at least 2, got {self.stride}")
        check_range(self.value_range)
        if self.geometry == "dalle" and (self.stride != 8 or self.reconstruction != "logit_laplace"):
            raise UserError("`dvae.geometry='dalle'` needs `dvae.stride=8` and `dvae.reconstruction='logit_laplace'`; set both")


# The networks of DALL-E's encoder.pkl and decoder.pkl, and of BEiT's own `--discrete_vae_type customized`.
PUBLISHED_DVAES: dict[str, DVAEConfig] = {
    "dalle": DVAEConfig(geometry="dalle", vocabulary=8192, hidden=256, codebook_dim=128, reconstruction="logit_laplace"),
    "beit": DVAEConfig(geometry="beit", vocabulary=8192, hidden=256, codebook_dim=512),
}


@config()
class VQKDConfig:
    """BEiT v2's tokenizer: codes from which a decoder predicts the patch features of a teacher network."""

    encoder: BackboneConfig
    """v2: base/16 with absolute positions only and no LayerScale; its final norm is what official files call `fc_norm`."""
    decoder_depth: PositiveInt = 3
    """Blocks of the decoder, which is otherwise a backbone like the encoder, on codes instead of pixels (v2: 1 or 3)."""
    vocabulary: Annotated[int, Bounds(ge=2)] = 8192
    """Number of codes."""
    code_dim: PositiveInt = 32
    """Width of a code."""
    target_dim: PositiveInt = 512
    """Width of the teacher's patch features (CLIP ViT-B/16: 512; DINO ViT-B/16: 768)."""
    code_decay: Annotated[float, Bounds(gt=0, lt=1)] = 0.99
    """Each training batch moves a code toward the mean of its vectors by 1 - this share."""
    start_from_data: bool = True
    """Set the codes by k-means of the first training batch instead of at random."""
    preprocessing: Preprocessing = INCEPTION
    """What the encoder expects (released files: 0.5 and 0.5)."""

    def __post_init__(self) -> None:
        if not self.encoder.final_norm or self.encoder.mask_token:
            raise UserError("a VQ-KD tokenizer needs an encoder with `final_norm=True` and `mask_token=False`")
        if self.encoder.patch[0] != self.encoder.patch[1]:
            raise UserError(f"a VQ-KD tokenizer needs square patches, got {self.encoder.patch[0]}x{self.encoder.patch[1]}")

    @property
    def stride(self) -> int:
        """Pixels per token along each axis."""
        return self.encoder.patch[0]

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.encoder.channels

    @property
    def decoder(self) -> BackboneConfig:
        """The decoder: its "pixels" are codes, one per patch."""
        return replace(self.encoder, depth=self.decoder_depth, image_size=self.encoder.grid, patch=(1, 1), channels=self.code_dim)


@config("reconstruct")
class ReconstructConfig:
    """How a discrete VAE is trained: the annealing of its relaxed codes, and what keeps codes alive."""

    temperature: tuple[PositiveFloat, PositiveFloat] = (1.0, 1 / 16)
    """Temperature of the Gumbel-softmax at the start and at the end (DALL-E: 1 to 1/16)."""
    temperature_share: Share = 0.75
    """Share of the run over which the temperature falls, by a cosine; then it stays."""
    kl_weight: tuple[NonNegativeFloat, NonNegativeFloat] = (0.02, 0.0)
    """Weight of the KL divergence to the uniform distribution at the start and at the end. Both losses are per pixel and channel:
    with mse, 0.02 falling to 0 lets codes be tried early and be certain late; DALL-E's logit_laplace has 0 rising to 6.6."""
    kl_share: Share = 1.0
    """Share of the run over which the KL weight changes, by a cosine; then it stays."""
    start_from_data: bool = True
    """Set the codes from k-means of the first batch's features."""
    revive_every: NonNegativeInt = 25
    """Most batches after which unused codes are split off from those with the most error, fewer in a run that is short; 0 turns
    this off."""
    revive_share: Share = 0.75
    """Share of the run during which codes are revived; the rest lets them settle."""
    dead_share: Share = 0.05
    """A code is unused when it is chosen less often than this share of the average."""


PUBLISHED_WINDOW = 8
"""Side in pixels of the largest patches that Coates, Lee and Ng (2011) whitened with 0.1."""


@config("kmeans")
class KMeansConfig:
    """k-means of whitened patches: how many codes, how many pixels one code stands for, and from what the centers are made."""

    vocabulary: Annotated[int, Bounds(ge=2)] = 512
    """Number of codes, which are the centers."""
    stride: Annotated[int, Bounds(ge=2)] = 8
    """Pixels per code, along each axis; 4 for small images."""
    margin: NonNegativeInt = 2
    """Pixels around a patch, on each side, that its code is found from as well; beyond the border the outermost pixels repeat."""
    patches: Annotated[int, Bounds(ge=2, le=2**24)] = 200_000
    """Patches, with their margins, that the centers are made from, all held in memory as float32."""
    iterations: PositiveInt = 30
    """Rounds of k-means (Lloyd); it ends before when no patch changes its center."""
    contrast_eps: PositiveFloat = 10 / 255**2
    """Added to the variance of a patch's pixels in [0, 1] before it is divided by its root (published: 10 with pixels to 255)."""
    whitening_eps: PositiveFloat | None = None
    """Added to the variance along each principal axis before it is divided by its root. None takes the published 0.1 for patches
    that are at most 8 pixels wide with their margins, and 10 for larger ones, of which most axes are noise."""
    channels: Channels = 3
    """Of the images, 1 to 16."""
    value_range: Annotated[ValueRange | None, tyro.conf.Suppress] = None
    """The values that are 0 and 1 in the images it was made from; None where they have 8 bits."""

    def __post_init__(self) -> None:
        check_range(self.value_range)
        if self.patches < self.vocabulary:
            raise UserError(
                f"`kmeans.patches` must be at least `kmeans.vocabulary`, a patch for each center, "
                f"got {self.patches} and {self.vocabulary}"
            )

    @property
    def window(self) -> int:
        """Side in pixels of what one code is found from: the patch and its margins."""
        return self.stride + 2 * self.margin

    @property
    def whitening(self) -> float:
        """`whitening_eps`, or what is chosen for it (decision 016)."""
        if self.whitening_eps is not None:
            return self.whitening_eps
        return 0.1 if self.window <= PUBLISHED_WINDOW else 10.0


TokenizerKind = Literal["dvae", "kmeans"]
"""What can be made here."""
TokenizerConfig = DVAEConfig | VQKDConfig | KMeansConfig
