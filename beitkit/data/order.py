"""In which order an epoch shows pictures whose classes are of unequal size."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def balanced_order(labels: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """An order of n pictures in which every class has its equal share (one more for some, where n is not divisible).

    Within a class no picture comes again before all others came. An entry is index + n * how often the picture came before.
    """
    total = len(labels)
    present = labels.unique()
    shares = torch.full((len(present),), total // len(present))
    shares[torch.randperm(len(present), generator=generator)[: total % len(present)]] += 1
    parts = []
    for label, share in zip(present.tolist(), shares.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        for occurrence in range(-(-share // len(members))):
            shuffled = members[torch.randperm(len(members), generator=generator)]
            parts.append(shuffled[: share - occurrence * len(members)] + occurrence * total)
    order = torch.cat(parts)
    return order[torch.randperm(total, generator=generator)]
