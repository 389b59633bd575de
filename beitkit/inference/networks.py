"""Computations on a batch of images: class probabilities or features, of a network whose weights are cast for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beitkit.configs.parts import Pool
from beitkit.configs.segmentation import InferenceConfig
from beitkit.errors import UserError
from beitkit.interop.kinds import Network
from beitkit.nn.averaged import averaged_logits, check_views
from beitkit.nn.backbone import Features
from beitkit.nn.models import Classifier

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Computation(Protocol):
    """From normalized images to one array per image; picklable."""

    def __call__(self, model: Network, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """One array per image, in float32."""
        ...

    def shape(self, model: Network) -> tuple[int, ...]:
        """Shape of the array of one image.

        Raises:
            UserError: if the network cannot compute them.
        """
        ...


@dataclass(frozen=True)
class Probabilities:
    """The probability of every class."""

    inference: InferenceConfig = InferenceConfig()
    """Views whose logits are averaged."""

    def __call__(self, model: Network, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Probabilities in the order of the network's classes."""
        assert isinstance(model, Classifier)
        return model.probabilities(averaged_logits(model, images, self.inference))

    def shape(self, model: Network) -> tuple[int, ...]:
        """(classes,)."""
        if not isinstance(model, Classifier):
            raise UserError(f"a {type(model).__name__} names no classes; fine-tune it to get a classifier, or take its features")
        check_views(self.inference, model.config.backbone.image_size)
        return (len(model.config.classes),)


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Features of one block, of all, or of the whole network.

    The whole network's are those of `model.backbone(images)`; pooled by their mean, those of a classifier that was trained on
    the mean are `model.features(images)`, what its head sees. Those of a block are its raw output, as a probe takes it.
    """

    block: int | Literal["all"] | None = None
    """Counted from 1; None for the whole network."""
    pool: Pool = "mean"

    def __call__(self, model: Network, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """(b, d), or (b, blocks, d) for all blocks; 2 d for both, and (..., n, d) for patches."""
        backbone = model.backbone
        if self.block is None:
            pooled = self._pooled(backbone(images))
            if isinstance(model, Classifier) and model.fc_norm is not None and self.pool == "mean":
                return model.fc_norm(pooled).float()
            return pooled
        if self.block == "all":
            return torch.stack([self._pooled(one) for one in backbone.intermediates(images, range(backbone.depth))], dim=1)
        return self._pooled(backbone.intermediates(images, [self.block - 1])[0])

    def shape(self, model: Network) -> tuple[int, ...]:
        """Shape of one image's features."""
        backbone = model.backbone
        if isinstance(self.block, int) and not 1 <= self.block <= backbone.depth:
            raise UserError(f"`block` {self.block} is not there: this network has blocks 1 to {backbone.depth}")
        rows, columns = backbone.config.grid
        blocks = (backbone.depth,) if self.block == "all" else ()
        patches = (rows * columns,) if self.pool == "patches" else ()
        return (*blocks, *patches, backbone.width * (2 if self.pool == "both" else 1))

    def _pooled(self, features: Features) -> Float[Tensor, "b ..."]:
        patches = features.patches.float()
        if self.pool == "patches":
            return patches
        mean, cls = patches.mean(1), features.cls.float()
        return {"mean": mean, "cls": cls, "both": torch.cat((cls, mean), dim=1)}[self.pool]


def source_of(model: Network) -> str:
    """Where a network was loaded from, for messages."""
    return "the network" if model.load_report is None else model.load_report.source


def cast_weights_(model: Module, precision: torch.dtype | None) -> Module:
    """Cast the weights of linear layers and convolutions to the autocast type in place; returns the network.

    Autocast would cast them for every batch, so results do not change; the weights take half the memory, and casting no time.
    None (no autocast) leaves them unchanged.
    """
    for module in model.modules():
        if precision is not None and isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)
    return model
