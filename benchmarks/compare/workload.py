"""The work that is timed: one network, its weights and its inputs, the same for all candidates."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from beitkit.configs.data import MaskConfig
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig, Pair, SizeName
from beitkit.configs.tokenizer import PUBLISHED_DVAES
from beitkit.data.views.masking import masker, with_positions
from beitkit.nn.models import Classifier, MaskedImageModel

Network = TypeVar("Network", bound=nn.Module)

TOKENIZER = PUBLISHED_DVAES["dalle"]
"""What turns images into tokens, with random weights: DALL-E's encoder, as BEiT v1."""
MASK = MaskConfig(ratio=75 / 196)
"""BEiT's 75 of 196 patches, always exactly as many."""
CLASSES = 1000
DROP_PATH = 0.1
CLIP = 3.0
LEARNING_RATE = 1e-5
"""Small enough that training on noise stays finite."""
DISTURBANCE = 0.02


class Inputs(NamedTuple):
    """A batch that lies in memory, on the device."""

    images: Tensor
    """(b, 3, h, w), float32, as if normalized."""
    token_images: Tensor
    """(b, 3, 8 gh, 8 gw), uint8: what the tokenizer sees."""
    mask: Tensor
    """(b, n), True where hidden; as many in every image."""
    positions: Tensor
    """(m,), int64: where these are in the flat (b, n), as runs find out before a batch is moved."""
    tokens: Tensor
    """(b, n), int64."""
    labels: Tensor
    """(b,), int64."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A size of network and batch."""

    size: SizeName
    image_size: int
    patch: int
    batch_size: int
    depth: int | None = None
    """Blocks of the network that is pre-trained; None takes the size's."""

    @property
    def masked_config(self) -> MaskedImageModelConfig:
        """The network that is pre-trained: BEiT v1's, one position table for all blocks."""
        backbone = BackboneConfig.named(
            f"{self.size}/{self.patch}",
            image_size=self.image_size,
            drop_path=DROP_PATH,
            mask_token=True,
            pretrain_init=True,
        )
        depth = backbone.depth if self.depth is None else self.depth
        return MaskedImageModelConfig(backbone=replace(backbone, depth=depth), vocabulary=TOKENIZER.vocabulary)

    @property
    def classifier_config(self) -> ClassifierConfig:
        """The network that is fine-tuned: a position table in every block, mean pooling."""
        backbone = BackboneConfig.named(
            f"{self.size}/{self.patch}",
            image_size=self.image_size,
            relative_positions="per_block",
            drop_path=DROP_PATH,
            final_norm=False,
        )
        return ClassifierConfig(backbone=backbone, classes=tuple(str(index) for index in range(CLASSES)))

    @property
    def token_size(self) -> Pair:
        """Size of the images that have one token per patch."""
        grid = self.masked_config.backbone.grid
        return grid[0] * TOKENIZER.stride, grid[1] * TOKENIZER.stride

    @property
    def num_masked(self) -> int:
        """Hidden patches of an image.

        Raises:
            UserError: a grid too small to be masked in part.
        """
        return masker(MASK, self.masked_config.backbone.grid).count

    def masked_model(self) -> MaskedImageModel:
        """The network that is pre-trained; always the same weights."""
        torch.manual_seed(0)
        return _disturbed(MaskedImageModel(self.masked_config))

    def classifier(self) -> Classifier:
        """The network that is fine-tuned; always the same weights."""
        torch.manual_seed(0)
        return _disturbed(Classifier(self.classifier_config))

    def inputs(self, device: torch.device) -> Inputs:
        """One batch; always the same."""
        generator = torch.Generator().manual_seed(0)
        grid = self.masked_config.backbone.grid
        draw, rng = masker(MASK, grid), random.Random(0)
        mask = torch.stack([draw(rng).flatten() for _ in range(self.batch_size)])
        drawn = Inputs(
            images=torch.randn(self.batch_size, 3, self.image_size, self.image_size, generator=generator),
            token_images=torch.randint(0, 256, (self.batch_size, 3, *self.token_size), generator=generator, dtype=torch.uint8),
            mask=mask,
            positions=next(with_positions([{"mask": mask}], recover_all=False))["positions"],
            tokens=torch.randint(0, TOKENIZER.vocabulary, (self.batch_size, grid[0] * grid[1]), generator=generator),
            labels=torch.randint(0, CLASSES, (self.batch_size,), generator=generator),
        )
        return Inputs(*(tensor.to(device) for tensor in drawn))


def _disturbed(model: Network) -> Network:
    """With noise on every parameter: position tables and biases start at 0, and two networks that differ there would agree."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=DISTURBANCE)
    return model
