"""A race: who takes part in a job, what their work amounts to, and whom one compares with whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from beitkit.measuring.turns import Contestant

TOLERANCE = 1e-4
"""Largest difference of two networks' float32 outputs, as a share of the largest output, that rounding explains."""

Flops = Mapping[str, int]
"""Operations of matrix products a picture, by the precision they are done in."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """One job, and everybody who does it."""

    job: str
    pictures: int
    """Pictures of a step."""
    contestants: Sequence[Contestant]
    flops: Mapping[str, Flops]
    """By the contestant's name; empty where no matrix product is in it."""
    comparisons: Sequence[tuple[str, str]]
    """Names of two contestants: how many times as fast is the first?"""
    parities: Mapping[str, Callable[[], float]]
    """By rival: how far its network's outputs are from ours, see `parity`."""
    share_of: Mapping[str, str]
    """Jobs that a contestant's share of the matrix-product rate stands for, and the name of that contestant."""


def parity(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two networks' outputs, as a share of our largest.

    Raises:
        AssertionError: if it is too large for rounding, so the two are not the same network.
    """
    assert ours.shape == theirs.shape, f"outputs of shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    assert difference <= TOLERANCE, f"the contestants are different networks: outputs differ by {difference:.2g} of the largest"
    return difference
