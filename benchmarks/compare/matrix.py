"""Peak rate of the machine: plain matrix products of a network's shapes, in turns with the candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch

from beitkit.configs.model import BackboneConfig
from benchmarks.compare.turns import Candidate, Step

PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Product(NamedTuple):
    """(rows, inner) times (inner, columns), in a precision."""

    rows: int
    inner: int
    columns: int
    precision: str

    @property
    def name(self) -> str:
        """Such as `1576x768 @ 768x3072, bfloat16`."""
        return f"{self.rows}x{self.inner} @ {self.inner}x{self.columns}, {self.precision}"

    @property
    def flops(self) -> int:
        """Operations of one product."""
        return 2 * self.rows * self.inner * self.columns


def products_of(backbone: BackboneConfig, batch_size: int, precisions: Sequence[str]) -> list[Product]:
    """The network's large matrix products: query, key and value, and both layers of the MLP, of a whole batch."""
    rows = batch_size * (backbone.grid[0] * backbone.grid[1] + 1)
    shapes = ((backbone.width, 3 * backbone.width), (backbone.width, backbone.hidden), (backbone.hidden, backbone.width))
    return [Product(rows, inner, columns, precision) for precision in precisions for inner, columns in shapes]


def candidate(product: Product, device: torch.device) -> Candidate:
    """A candidate that does nothing but this product."""

    def prepare() -> Step:
        generator = torch.Generator().manual_seed(0)
        dtype = PRECISIONS[product.precision]
        left = torch.randn(product.rows, product.inner, generator=generator).to(device, dtype)
        # Stored as a linear layer has it, and into memory that is there already: the rate is to be the most there is.
        right = torch.randn(product.columns, product.inner, generator=generator).to(device, dtype).T
        out = torch.empty(product.rows, product.columns, device=device, dtype=dtype)
        return lambda: torch.mm(left, right, out=out)

    return Candidate(product.name, "matrix product", prepare)


def rates(products: Sequence[Product], taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Operations a second of each product, by its name: the median over rounds."""
    return {product.name: product.flops / median(taken[product.name]) for product in products}


def best_rates(products: Sequence[Product], taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Operations a second of the fastest product in each precision."""
    measured, best = rates(products, taken), {}
    for product in products:
        best[product.precision] = max(best.get(product.precision, 0.0), measured[product.name])
    return best
