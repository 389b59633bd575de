"""Casting weights for inference."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def cast_weights_(model: Module, precision: torch.dtype | None) -> Module:
    """Cast the weights of linear layers and convolutions to the autocast type in place; returns the network.

    Autocast would cast them for every batch, so results do not change; the weights take half the memory, and casting no time.
    None (no autocast) leaves them unchanged.
    """
    for module in model.modules():
        if precision is not None and isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)
    return model
