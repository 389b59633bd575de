"""k-means of whitened patches: a tokenizer without a network, made in seconds (method 3.4; Coates, Lee and Ng 2011).

A token is the nearest of `vocabulary` centers to a patch and the pixels around it, after contrast normalization and whitening.
Both whitening and distances are affine in the normalized patch, so they are stored as one matrix and one vector: the nearest
center has the largest score. A code decodes to the mean of the patches that were nearest to its center; what the normalization
takes away, a patch's own brightness and contrast, is not in the code.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.data import ValueRange
from beitkit.configs.tokenizer import KMeansConfig
from beitkit.nn.patches import from_patches
from beitkit.nn.shapes import autocast_off
from beitkit.tokenizers.checks import check_ids, check_images
from beitkit.tokenizers.clusters import Whitening, best_scores, center_scores
from beitkit.tokenizers.codebook import gather_by_code
from beitkit.tokenizers.fingerprint import digest_of


class KMeansTokenizer(nn.Module):
    """Centers as filters, and the mean patch of each; a `contracts.Tokenizer`. Fresh ones are noise; `set_centers` fills them."""

    filters: Tensor
    """(v, d): a score is the product with a normalized window, d = channels * window^2 ..."""
    offsets: Tensor
    """... plus this (v,)."""
    mean_patches: Tensor
    """(v, c, stride, stride) in [0, 1]: what a code decodes to."""

    def __init__(self, config: KMeansConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary, self.stride, self.channels = config.vocabulary, config.stride, config.channels
        self.register_buffer("filters", torch.randn(config.vocabulary, config.channels * config.window**2))
        self.register_buffer("offsets", torch.zeros(config.vocabulary))
        self.register_buffer("mean_patches", torch.rand(config.vocabulary, config.channels, config.stride, config.stride))

    @property
    def value_range(self) -> ValueRange | None:
        """The values that are 0 and 1 in the images; None where they have 8 bits."""
        return self.config.value_range

    @property
    def fingerprint(self) -> str:
        """Digest (32 hex digits) of config and of what ids depend on."""
        return digest_of(self.config, {"filters": self.filters, "offsets": self.offsets})

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b gh gw"]:
        """The visual tokens of images in [0, 1]; ties go to the lowest id.

        Scores are computed in float32 even under autocast, because near centers would tie in bfloat16.
        """
        check_images(images, self.channels, self.stride)
        windows = contrast_normalized(self.windows(images), self.config.contrast_eps)
        with autocast_off(images.device):
            ids = best_scores(windows.flatten(0, 1), self.filters, self.offsets)[1]
        return ids.view(len(images), images.shape[2] // self.stride, images.shape[3] // self.stride)

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "b gh gw"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] from visual tokens: each the mean patch of its code."""
        check_ids(ids, self.vocabulary)
        return from_patches(
            self.mean_patches.flatten(1)[ids.flatten(1)], (ids.shape[1], ids.shape[2]), (self.stride, self.stride)
        )

    def windows(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Every patch with its margins, in raster order; within one by channel, then row, then column."""
        margin, side, stride = self.config.margin, self.config.window, self.stride
        padded = F.pad(images, (margin, margin, margin, margin), mode="replicate")
        cut = padded.unfold(2, side, stride).unfold(3, side, stride)  # (b, c, gh, gw, side, side)
        return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def patches_of(self, windows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n p"]:
        """Windows without their margins, p = channels * stride^2."""
        margin, inner = self.config.margin, slice(self.config.margin, self.config.margin + self.stride)
        if not margin:
            return windows
        return windows.unflatten(-1, (self.channels, self.config.window, self.config.window))[..., inner, inner].flatten(-3)

    @torch.no_grad()
    def set_centers(
        self,
        whitening: Whitening,
        centers: Float[Tensor, "v d"],
        ids: Int[Tensor, " n"],
        patches: Float[Tensor, "n p"],
    ) -> None:
        """Take these centers of whitened windows, and for each the mean of the patches that have its id (without any: of all)."""
        filters, offsets = center_scores(centers.double())
        matrix = whitening.matrix.to(filters)
        self.filters.copy_(filters @ matrix)  # the matrix is symmetric
        self.offsets.copy_(offsets - self.filters.to(filters) @ whitening.mean.to(filters))
        counts, sums = gather_by_code(patches.double(), ids, self.vocabulary)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), patches.double().mean(0))
        self.mean_patches.copy_(means.view_as(self.mean_patches))


def contrast_normalized(windows: Float[Tensor, "*n d"], eps: float) -> Float[Tensor, "*n d"]:
    """Each window minus its mean, divided by the root of its variance plus eps (Coates, Lee and Ng 2011, section 3.1)."""
    variance, mean = torch.var_mean(windows, -1, correction=0, keepdim=True)
    return (windows - mean) * (variance + eps).rsqrt()
