"""Broadcast and sum over the ranks of a run; without a process group, or in a group of one, they do nothing."""

from __future__ import annotations

from torch import Tensor, distributed


def world_size() -> int:
    """Ranks of the process group; 1 without one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_distributed() -> bool:
    """Whether there is a process group of more than one rank."""
    return world_size() > 1


def is_rank_zero() -> bool:
    """Whether this is rank 0, or the only process."""
    return not is_distributed() or distributed.get_rank() == 0


def broadcast_(*tensors: Tensor) -> None:
    """Overwrite the tensors with those of rank 0."""
    if is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def all_reduce_(*tensors: Tensor) -> None:
    """Overwrite the tensors with their sums over all ranks."""
    if is_distributed():
        for tensor in tensors:
            distributed.all_reduce(tensor)
