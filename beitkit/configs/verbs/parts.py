"""What several verbs share: options without a prefix, the network's details, a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import arg

from beitkit.configs.data import IMAGENET, INCEPTION, Preprocessing
from beitkit.configs.model import RelativePositions
from beitkit.errors import UserError, check_finite

Flat = arg(name="")
"""Options of this part are written without a prefix: `--lr`, not `--train.lr`."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The details of the network that is pre-trained."""

    positions: RelativePositions = "shared"
    """Relative position bias: one table for all blocks, one per block, or none (then learned absolute positions)."""
    layer_scale: float | None = None
    """First value of LayerScale; None takes the size's usual one, 0 leaves it out."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    normalization: Literal["inception", "imagenet"] = "imagenet"
    """Pixel statistics: imagenet (the original's IN-1k runs) or inception (0.5 and 0.5, its IN-22k runs)."""

    def __post_init__(self) -> None:
        check_finite(self)
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--network.drop-path must lie in [0, 1), got {self.drop_path}")
        if self.layer_scale is not None and self.layer_scale < 0:
            raise UserError(f"--network.layer-scale must not be negative, got {self.layer_scale}")

    @property
    def preprocessing(self) -> Preprocessing:
        """What the finished model expects of its pictures."""
        return IMAGENET if self.normalization == "imagenet" else INCEPTION


def check_batch(batch_size: int) -> None:
    """Raise a `UserError` for a batch without pictures."""
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")
