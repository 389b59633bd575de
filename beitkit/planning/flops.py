"""FLOPs of one image, by PyTorch's counter on tensors that have shapes only.

2 per multiply-add of a matrix product or a convolution; tests compare with closed forms. Everything else (norms, softmax, GELU,
resizing, the optimizer) is not counted, as usual; it takes time, but is less than 1% of the operations. Recomputation inside a
fused attention kernel is not counted; activation checkpointing is counted separately.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from beitkit.contracts import Batch
from beitkit.nn.backbone import PatchEmbedding
from beitkit.nn.blocks import Attention, Mlp


class Flops(NamedTuple):
    """Forward operations of one image by part."""

    embedding: int
    attention: int
    """Projections of queries, keys, values and results, scores, and mixing."""
    mlp: int
    head: int

    @property
    def blocks(self) -> int:
        """All blocks."""
        return self.attention + self.mlp

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.embedding + self.blocks + self.head

    @property
    def backward(self) -> int:
        """One backward pass: for each product two (by the input, by the weight), but one for the embedding, as the images need
        no gradient."""
        return 2 * self.forward - self.embedding

    def step(self, *, recompute: bool) -> int:
        """Forward and backward; with `recompute` the blocks go forward a second time."""
        return self.forward + self.backward + (self.blocks if recompute else 0)


def count_forward(objective: nn.Module, batch: Batch) -> Flops:
    """Of a forward pass over a batch of one image, by an objective in eval mode: batch norm cannot be trained on one."""
    with counting() as counter:
        objective(batch, 0.0)
    by_module = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    root = type(objective).__name__

    def part(kind: type[nn.Module]) -> int:
        return sum(by_module[f"{root}.{name}"] for name, module in objective.named_modules() if isinstance(module, kind))

    embedding, attention, mlp = part(PatchEmbedding), part(Attention), part(Mlp)
    return Flops(embedding, attention, mlp, head=counter.get_total_flops() - embedding - attention - mlp)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """The counter of what is computed inside.

    Attention consists of plain products there, of which it knows the operations; it does not know the fused kernel for CPUs.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter
