"""From the host to a device, without making the host wait for what the device still has to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from beitkit.contracts import Batch

ON_HOST = frozenset({"erased"})
"""Keys of a batch that the host reads later, so that they stay there."""


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; to CUDA through pinned memory, asynchronously."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=device.type != "mps")


def to_device(stream: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches moved to a device, but for what the host reads (`ON_HOST`)."""
    for batch in stream:
        yield {key: value if key in ON_HOST else moved(value, device) for key, value in batch.items()}
