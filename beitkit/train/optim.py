"""AdamW with BEiT's parameter groups: no weight decay on vectors, layer-wise learning-rate decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypedDict, runtime_checkable

import torch
from torch import nn

from beitkit.configs.train import OptimConfig


class Group(TypedDict):
    """Parameters with the same learning-rate factor and weight decay."""

    params: list[nn.Parameter]
    lr_scale: float
    weight_decay: float


@runtime_checkable
class Layered(Protocol):
    """A module that assigns a layer to each of its parameters."""

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i + 1 for block i, depth + 1 above."""
        ...

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is exempt from weight decay by name."""
        ...


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Two groups: weight decay on matrices, none on vectors (biases, norms)."""
    return _grouped(model, weight_decay, lambda name: 1.0, lambda name: False)


def layered_groups(model: nn.Module, layers: Layered, optim: OptimConfig) -> list[Group]:
    """Groups by layer and weight decay (method 4.1, 4.2): layer j of L + 2 has lr_scale = layer_decay ** (L + 1 - j)."""
    top = max(layers.layer_of(name) for name, _ in model.named_parameters())
    decay = 1.0 if optim.layer_decay is None else optim.layer_decay
    return _grouped(model, optim.weight_decay, lambda name: decay ** (top - layers.layer_of(name)), layers.no_decay)


def _grouped(
    model: nn.Module, weight_decay: float, lr_scale_of: Callable[[str], float], no_decay: Callable[[str], bool]
) -> list[Group]:
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or no_decay(name) else weight_decay
        scale = lr_scale_of(name)
        group = groups.setdefault((scale, decay), Group(params=[], lr_scale=scale, weight_decay=decay))
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(groups: list[Group], optim: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the groups."""
    return torch.optim.AdamW([dict(group) for group in groups], betas=optim.betas, eps=optim.eps, fused=True)
