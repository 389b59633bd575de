"""The weights of a network that only predicts."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def cast_weights_(model: Module, precision: torch.dtype | None) -> Module:
    """The same network, whose linear layers and convolutions hold their weights in the precision that autocast computes in.

    Autocast would round them to it for every batch, so under autocast nothing changes in what comes out; the weights take half
    the memory, and the rounding no time. None, for a run without autocast, leaves them as they are.
    """
    for module in model.modules():
        if precision is not None and isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)
    return model
