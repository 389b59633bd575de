"""How a training run begins, in its written order: first weights, what of them is kept, what learns at which rate."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch

from beitkit.configs.train import Freeze, LightConfig, OptimConfig, Part, TrainConfig
from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone
from beitkit.nn.lora import add_adapters
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.train.optim import Group, layered_groups

Model = TypeVar("Model", bound=MaskedImageModel | Classifier | Segmenter)

NAMES: dict[Part, str] = {
    "patch_embed": r"patch_embed\.",
    "positions": r"pos_embed|rel_pos_bias\.|blocks\.\d+\.attn\.relative_position_bias_table",
    "tokens": r"cls_token|mask_token",
    "blocks": r"blocks\.",
    "attn": r"blocks\.\d+\.attn\.(?!relative_position_bias_table)",
    "mlp": r"blocks\.\d+\.mlp\.",
    "norms": r"blocks\.\d+\.(?:norm[12]|attn\.norm|mlp\.norm)\.",
}
"""The beginnings of a part's names in a backbone, as patterns."""
ABOVE = r"norm\."
"""A backbone's last norm, above its blocks: it counts with the head, which always learns."""


@runtime_checkable
class StartingRun(Protocol):
    """What a verb's configuration says of the init stage."""

    @property
    def train(self) -> TrainConfig:
        """For the seed."""
        ...

    @property
    def light(self) -> LightConfig:
        """Blocks that learn, and adapters."""
        ...

    @property
    def freeze(self) -> Freeze:
        """Parts that do not."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """Learning rates by layer, and weight decay."""
        ...


@dataclass(frozen=True)
class Start(Generic[Model]):
    """A network before its first step."""

    model: Model
    groups: list[Group]
    """What of it learns, and how fast (see `train.optim`)."""

    @classmethod
    def of(cls, initialize: Callable[[], Model], config: StartingRun) -> Start[Model]:
        """The init stage of every training verb.

        Args:
            initialize: the network with its first weights: fresh ones drawn by the global generator, which is seeded before, or
                those of a file.
            config: the verb's.

        Raises:
            UserError: if more blocks are to learn than there are, or of more rank than the layers have.
        """
        torch.manual_seed(config.train.seed)
        # 1: first weights
        model = initialize()
        # 2: what of them is kept
        keep(model.backbone, config.freeze)
        keep_below(model.backbone, config.light)
        adapt(model, config.light)
        # 3: what learns at which rate
        groups = layered_groups(model, model, config.optim)
        return cls(model, groups)

    def describe(self) -> str:
        """Words to put after a run's announcement: how much learns; empty where all does."""
        parameters = list(self.model.parameters())
        learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in parameters)
        return "" if learning == total else f"; {learning:,} of {total:,} parameters learn"


def keep(backbone: Backbone, freeze: Freeze) -> None:
    """Freeze the parts that are named, or all (True) but the last norm."""
    if isinstance(freeze, tuple):
        _freeze(backbone, "|".join(NAMES[part] for part in freeze))
    elif freeze:
        _freeze(backbone, rf"(?!{ABOVE})")


def keep_below(backbone: Backbone, light: LightConfig) -> None:
    """Freeze all below the last blocks that learn, so that no gradient is computed there.

    Raises:
        UserError: if there are fewer blocks.
    """
    if light.last is None:
        return
    if light.last > backbone.depth:
        raise UserError(
            f"`train_blocks` must be at most last:{backbone.depth}, as this network has {backbone.depth} blocks, "
            f"got {light.train_blocks}"
        )
    trained = "|".join(map(str, range(backbone.depth - light.last, backbone.depth)))
    _freeze(backbone, rf"(?!{ABOVE}|blocks\.(?:{trained})\.)")


def adapt(model: MaskedImageModel | Classifier | Segmenter, light: LightConfig) -> None:
    """Freeze all but the last norm, and add low-rank adapters to attention and MLP of the blocks that learn.

    What is fresh, such as the mask token of a network that had none, learns with them.

    Raises:
        UserError: if the rank is more than a layer's inputs or outputs.
    """
    if light.lora_rank is None:
        return
    backbone, report = model.backbone, model.load_report
    _freeze(backbone, rf"(?!{ABOVE})")
    for record in () if report is None else report.records:
        if record.fate == "fresh":
            model.get_parameter(record.name).requires_grad_(True)
    for block in backbone.each_block()[-(light.last or backbone.depth) :]:
        add_adapters(block, light.lora_rank, float(light.lora_alpha or light.lora_rank))


def _freeze(backbone: Backbone, pattern: str) -> None:
    for name, parameter in backbone.named_parameters():
        if re.match(pattern, name):
            parameter.requires_grad_(False)
