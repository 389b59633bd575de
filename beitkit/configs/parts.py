"""Option groups shared by several verbs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from beitkit.configs.bounds import Bounds, NonNegativeFloat, PositiveInt, ShareBelowOne, config
from beitkit.configs.codec import later
from beitkit.configs.data import IMAGENET, INCEPTION, Preprocessing
from beitkit.configs.model import SIZES, BackboneConfig, ImageSize, RelativePositions, Size, SizeName
from beitkit.errors import UserError

EngineName = Literal["local", "ray"]
Pool = Literal["mean", "cls", "both", "patches"]
Task = Literal["masked", "classify", "segment"]
CheckpointFormat = Literal["native", "microsoft", "huggingface", "timm"]
ProgramFormat = Literal["onnx", "torch"]

DEFAULT_PATCH = 16
"""Side of a patch in pixels, where a network is described and nothing else is said (BEiT's)."""
Views = Annotated[int, Bounds(ge=1, le=4096)]
"""Stored views of an image; a run of more epochs than that can as well show another view in each."""
Flat = arg(name="")
"""The command line writes the fields of this part without a prefix, and messages name them so: `lr`, not `train.lr`."""
Json = Annotated[bool, arg(help="Print the result as JSON on stdout; everything else goes to stderr.")]
"""Of every verb; `beitkit.verbs` obeys it."""
From = arg(name="from")
"""The command line calls this field `from`, a word that Python keeps for itself."""


@config("network")
class NetworkConfig:
    """The details of the network that is pre-trained."""

    positions: RelativePositions = "shared"
    """Relative position bias: one table for all blocks, one per block, or none (then learned absolute positions)."""
    layer_scale: NonNegativeFloat | None = None
    """First value of LayerScale; None takes the size's usual one, 0 leaves it out."""
    drop_path: ShareBelowOne = 0.1
    """Stochastic depth of the last block."""
    normalization: Literal["inception", "imagenet", "data"] = "imagenet"
    """Pixel statistics: imagenet (the original's IN-1k runs), inception (0.5 and 0.5, its IN-22k runs), or the images' own."""
    mean: tuple[float, ...] | None = later(None)
    """Mean of each channel, with values in [0, 1], in place of `network.normalization`."""
    std: tuple[float, ...] | None = later(None)
    """Standard deviation of each channel."""
    depth: PositiveInt | None = later(None)
    """Number of blocks, in place of the size's."""
    width: PositiveInt | None = later(None)
    """Width of the tokens, in place of the size's; the MLP's grows with it."""
    heads: PositiveInt | None = later(None)
    """Attention heads, in place of the size's; with another width None keeps the width of a head."""

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UserError("`network.mean` and `network.std` belong together; give both, or `network.normalization`")

    def shape(self, size: SizeName) -> Size:
        """The named size with the depth, width and heads that are given in its place."""
        named = SIZES[size]
        width = named.width if self.width is None else self.width
        return named._replace(
            width=width,
            depth=named.depth if self.depth is None else self.depth,
            heads=max(1, width * named.heads // named.width) if self.heads is None else self.heads,
            hidden=width * named.hidden // named.width,
        )

    def backbone(
        self, size: SizeName, patch: int, image_size: ImageSize, *, drop_path: float, final_norm: bool, channels: int = 3
    ) -> BackboneConfig:
        """The fine-tuning form of the network that is described, for fresh weights."""
        return BackboneConfig.of_size(
            self.shape(size),
            patch=patch,
            image_size=image_size,
            channels=channels,
            absolute_positions=self.positions == "none",
            relative_positions=self.positions,
            layer_scale="default" if self.layer_scale is None else self.layer_scale or None,
            drop_path=drop_path,
            final_norm=final_norm,
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """What the finished model expects of its images."""
        if self.mean is not None and self.std is not None:
            return Preprocessing(mean=self.mean, std=self.std)
        return IMAGENET if self.normalization == "imagenet" else INCEPTION

    @property
    def has_own_statistics(self) -> bool:
        """Whether mean and deviation are those of the images."""
        return self.normalization == "data" and self.mean is None


def check_start(model: Path | None, scratch: bool, network: NetworkConfig, described: dict[str, str | int | None]) -> None:
    """Raise a `UserError` unless it is said once where the network and its first weights come from.

    `network` and `described`, its other options (`size` among them; None where not given), describe one without a checkpoint.
    """
    if model is None and not (scratch and described["size"] is not None):
        raise UserError(
            "nothing says which network to train; give `model`, or `scratch` with `size` (such as base) for fresh weights"
        )
    default = NetworkConfig()
    if network.drop_path != default.drop_path:
        raise UserError(f"`network.drop_path` is for pre-training; give `drop_path={network.drop_path:g}`")
    given = [name for name, value in described.items() if value is not None]
    given += ["network"] if network != default else []
    if model is not None and given:
        raise UserError(f"`{given[0]}` describes a network for `scratch`, but `model='{model}'` does already; leave one out")


def shard_of(text: str | None, field: str = "shard") -> tuple[int, int]:
    """`3/8` as (3, 8); no text is the whole, (1, 1). Messages call it `field`.

    Raises:
        UserError: not of this form, or not one of the shards.
    """
    if text is None:
        return 1, 1
    parts = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    if parts is None or not 1 <= int(parts[1]) <= int(parts[2]):
        raise UserError(f"`{field}` must be one of 1/n to n/n, such as 3/8, got {text!r}")
    return int(parts[1]), int(parts[2])
