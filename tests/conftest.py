"""Fixtures of several test files: the deterministic weights and images that the golden vectors were made with, and timm.

Golden vectors are outputs of the official code for weights that a rule fixes instead of a file: sorted by name, entry i of
tensor j is 0.2 sin(0.37 i + 0.11 j), rounded to float32; scales of norms are 1 more, LayerScale vectors 0.5 more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.compare.torchvision_stand_in import torchvision_stand_in

Fill = Callable[..., nn.Module]


@pytest.fixture
def golden_fill() -> Fill:
    """Fill a module by the rule, in the order of its official names; returns it in float64 and eval mode.

    `renamed` maps prefixes of our names to official ones; `kept` are prefixes of tensors that are left alone; `raised` are
    ends of official names that get 1 more.
    """

    def fill(
        model: nn.Module,
        renamed: Mapping[str, str],
        kept: tuple[str, ...] = (),
        raised: tuple[str, ...] = (),
    ) -> nn.Module:
        raised = ("norm1.weight", "norm2.weight", "fc_norm.weight", *raised)
        named = {}
        for ours, tensor in model.double().eval().state_dict().items():
            if "num_batches" in ours or (kept and ours.startswith(kept)):
                continue
            prefix = next((prefix for prefix in renamed if ours.startswith(prefix)), "")
            named[renamed.get(prefix, "") + ours.removeprefix(prefix)] = tensor
        for j, name in enumerate(sorted(named)):
            values = (0.2 * np.sin(0.37 * np.arange(named[name].numel()) + 0.11 * j)).astype(np.float32)
            offset = 1.0 if name.endswith(raised) or name == "norm.weight" else 0.5 if "gamma_" in name else 0.0
            named[name].copy_(torch.from_numpy(values).view_as(named[name]) + offset)
        return model

    return fill


@pytest.fixture
def golden_input() -> Callable[..., Tensor]:
    """cos(0.013 i) over the flat index, in the given shape."""
    return lambda *shape: torch.cos(0.013 * torch.arange(int(np.prod(shape)), dtype=torch.float64)).view(*shape)


@pytest.fixture
def golden_mask() -> Tensor:
    """Positions 0, 4, 5 of the first and 2, 8 of the second 3x3 grid."""
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, [0, 4, 5]] = True
    mask[1, [2, 8]] = True
    return mask


@pytest.fixture(scope="session")
def timm_library() -> Any:
    """timm, imported without torchvision, which its BEiT does not need."""
    # Only for the import: transformers, if it is imported later, must not believe that torchvision is there.
    with torchvision_stand_in():
        return pytest.importorskip("timm", reason="timm is not installed (pip install --no-deps timm)")
