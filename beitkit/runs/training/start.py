"""How a training run begins, in its written order: first weights, what is done to them, what learns at which rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from beitkit.configs.train import OptimConfig
from beitkit.interop.kinds import Network
from beitkit.train.optim import Group, layered_groups

Model = TypeVar("Model", bound=Network)


@dataclass(frozen=True)
class Start(Generic[Model]):
    """A network before its first step."""

    model: Model
    groups: list[Group]
    """What of it learns, and how fast (see `train.optim`)."""

    @classmethod
    def of(
        cls, initialize: Callable[[], Model], transform: Callable[[Model], None] | None, optim: OptimConfig, *, seed: int
    ) -> Start[Model]:
        """The init stage of every training verb.

        Args:
            initialize: the network with its first weights: fresh ones drawn by the global generator, or those of a file.
            transform: what is done to it before it learns, such as freezing a part.
            optim: learning rates by layer, and weight decay.
            seed: fixes what is drawn.
        """
        torch.manual_seed(seed)
        model = initialize()  # 1: first weights
        if transform is not None:  # 2: what is done to them
            transform(model)
        groups = layered_groups(model, model, optim)  # 3: what learns at which rate
        return cls(model, groups)
