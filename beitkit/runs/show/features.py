"""Features looked at: by their principal components as colors, and by what is nearest to them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def principal_components(features: Float[Tensor, "n d"], count: int) -> tuple[Float[Tensor, "n count"], Float[Tensor, " count"]]:
    """The features along their first principal components, and the share of the variance that each explains.

    Components beyond the rank are 0. The sign is that which makes the largest weight of a component positive.
    """
    centered = features.double() - features.double().mean(0)
    _, singular, directions = torch.linalg.svd(centered, full_matrices=False)
    kept = min(count, len(singular))
    directions = directions[:kept]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    projected = centered @ (directions * largest.sign()).T
    variance = singular.square()
    shares = variance[:kept] / variance.sum().clamp(min=1e-300)
    missing = count - kept
    return torch.nn.functional.pad(projected, (0, missing)).float(), torch.nn.functional.pad(shares, (0, missing)).float()


class Nearest:
    """The most similar images of a gallery that comes in batches, by the cosine; of equal ones the earlier."""

    def __init__(self, queries: Float[Tensor, "q d"], own: Int64[Tensor, " q"], count: int) -> None:
        """`own` is the place of each query's own image in the gallery, which is no neighbor of its own."""
        self._queries = torch.nn.functional.normalize(queries.float(), dim=1)
        self._own = own
        self.similarity = torch.full((len(queries), count), -torch.inf)
        """(q, count), the highest first; -inf where there are not as many images."""
        self.image = torch.full((len(queries), count), -1)
        """Its place in the gallery."""
        self.patch = torch.zeros(len(queries), count, dtype=torch.int64)
        """Which of its features it was, 0 where an image has one only."""

    def update(self, places: Int64[Tensor, " b"], features: Float[Tensor, "b m d"]) -> None:
        """Look at the next images of the gallery; of the m features of an image (its patches, or one) the most similar counts."""
        similarity = torch.einsum("qd,bmd->qbm", self._queries, torch.nn.functional.normalize(features.float(), dim=2))
        best = similarity.max(2)
        values = best.values.masked_fill(places[None, :] == self._own[:, None], -torch.inf)
        everything = torch.cat((self.similarity, values), 1)
        order = everything.argsort(dim=1, descending=True, stable=True)[:, : self.similarity.shape[1]]
        self.similarity = everything.gather(1, order)
        self.image = torch.cat((self.image, places.expand(len(values), -1)), 1).gather(1, order)
        self.patch = torch.cat((self.patch, best.indices), 1).gather(1, order)

    @property
    def found(self) -> int:
        """How many neighbors every query has, at most the wanted number."""
        return int(self.similarity.isfinite().sum(1).min())
