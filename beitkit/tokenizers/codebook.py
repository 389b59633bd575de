"""Codebook of unit vectors, updated by EMA: the quantizer of BEiT v2's tokenizer (arXiv 2208.06366, section 2.2).

A vector is replaced by the code with the largest cosine similarity. The codes get no gradient: in training, each moves a little
toward the mean direction of the vectors assigned to it (EMA). The vectors get the gradient of their codes (straight-through),
and the commitment loss keeps them near their codes. In eval mode nothing changes, not even the usage counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.nn.collectives import all_reduce_, broadcast_

KMEANS_STEPS = 10  # official code
MAX_SCORES = 2**24
"""Similarities held at a time (64 MiB): all at once, 64 images of 196 patches against 8192 codes would take 400 MB."""


class Quantized(NamedTuple):
    """Output of the codebook for a map of vectors."""

    vectors: Float[Tensor, "b d gh gw"]
    """The chosen codes; their gradient goes to the input."""
    ids: Int[Tensor, "b gh gw"]
    commitment: Float[Tensor, ""]
    """Mean squared distance, per component, of the normalized input to its codes (weight 1 in BEiT v2)."""


class Codebook(nn.Module):
    """Unit codes (v, d) with an exponential moving average of how often each is chosen per batch."""

    codes: Tensor
    usage: Tensor
    is_started: Tensor

    def __init__(self, vocabulary: int, dim: int, *, decay: float, start_from_data: bool) -> None:
        """`start_from_data`: initialize the codes by k-means of the first training batch."""
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", F.normalize(torch.randn(vocabulary, dim), dim=1))
        self.register_buffer("usage", torch.zeros(vocabulary))
        self.register_buffer("is_started", torch.tensor(not start_from_data))

    @torch.no_grad()
    def lookup(self, x: Float[Tensor, "b d gh gw"]) -> Int[Tensor, "b gh gw"]:
        """Id of the nearest code by cosine similarity at every position; ties go to the lowest id."""
        b, _, height, width = x.shape
        return nearest_codes(_as_points(x), self.codes).view(b, height, width)

    def forward(self, x: Float[Tensor, "b d gh gw"]) -> Quantized:
        """The nearest code at every position; in training mode the codes are updated afterward."""
        points = _as_points(x)  # (m, d)
        with torch.no_grad():
            if self.training and not self.is_started:
                self._start(points)
            ids = nearest_codes(points, self.codes)
            chosen = self.codes[ids]
            if self.training:
                self._follow(points, ids)
        b, _, height, width = x.shape
        passed = points + (chosen - points).detach()
        vectors = passed.view(b, height, width, -1).permute(0, 3, 1, 2)
        return Quantized(vectors, ids.view(b, height, width), F.mse_loss(points, chosen))

    def _start(self, points: Float[Tensor, "m d"]) -> None:
        self.codes.copy_(directional_kmeans(points, len(self.codes)))
        # Ranks see different images; without this they would train against different codebooks.
        broadcast_(self.codes)
        self.is_started.fill_(True)

    def _follow(self, points: Float[Tensor, "m d"], ids: Int[Tensor, " m"]) -> None:
        counts, sums = gather_by_code(points, ids, len(self.codes))
        all_reduce_(counts, sums)
        # A code without vectors is its own mean, so it stays.
        means = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), self.codes)
        self.codes.copy_(F.normalize(self.decay * self.codes + (1 - self.decay) * means, dim=1))
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)


def nearest_codes(points: Float[Tensor, "m d"], codes: Float[Tensor, "v d"]) -> Int[Tensor, " m"]:
    """For every point the unit code with the largest inner product, which is the nearest one; in bounded memory."""
    at_a_time = max(1, MAX_SCORES // len(codes))
    return torch.cat([(part @ codes.T).argmax(1) for part in points.split(at_a_time)])


def directional_kmeans(points: Float[Tensor, "m d"], num_codes: int) -> Float[Tensor, "v d"]:
    """Spherical k-means of unit points, started from random points; an empty center stays where it is."""
    if len(points) >= num_codes:
        drawn = torch.randperm(len(points), device=points.device)[:num_codes]
    else:
        drawn = torch.randint(len(points), (num_codes,), device=points.device)
    centers = points[drawn]
    for _ in range(KMEANS_STEPS):
        counts, sums = gather_by_code(points, nearest_codes(points, centers), num_codes)
        centers = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), centers)
    return centers


def gather_by_code(points: Tensor, ids: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Number of points per code (v), and their sums (v, d)."""
    counts = points.new_zeros(num_codes).index_add_(0, ids, points.new_ones(len(ids)))
    return counts, points.new_zeros(num_codes, points.shape[1]).index_add_(0, ids, points)


def _as_points(x: Tensor) -> Tensor:
    return F.normalize(x.permute(0, 2, 3, 1).flatten(0, 2), dim=1)  # (b * gh * gw, d)
