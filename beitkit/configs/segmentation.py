"""How a segmenter is trained and used: its loss, how whole images are labeled, and the colors of its classes."""

from __future__ import annotations

import colorsys
from dataclasses import fields, replace
from typing import Annotated, Literal

from beitkit.configs.bounds import Bounds, NonNegativeFloat, NonNegativeInt, PositiveInt, config
from beitkit.configs.codec import later
from beitkit.errors import UserError

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

HUE_STEP = 0.6180339887498949  # golden ratio - 1: neighbors in the list of classes get hues far apart


@config("loss")
class SegmentationLossConfig:
    """How the pixels' cross-entropies become one loss."""

    auxiliary_weight: NonNegativeFloat = 0.4
    """Weight of the auxiliary head's loss; the decoder's has 1."""
    average: Literal["valid", "all"] = "valid"
    """Pixels that the mean is over: valid, those with a label; or all, the ignored ones among them (the official code, where
    ignored pixels make the gradient smaller)."""
    class_weights: Literal["none", "balanced"] = later("none")
    """Weight of each class in the cross-entropies: none; or balanced, all pixels / (classes x pixels of the class) in the
    training masks, for rare classes."""
    dice_weight: NonNegativeFloat = later(0.0)
    """Weight of the decoder's dice loss, in which every class that a batch shows counts alike; 0 leaves it out."""

    @property
    def is_weighed(self) -> bool:
        """Whether rare classes count more, by weights or a dice loss."""
        return self.class_weights != "none" or self.dice_weight > 0


OF_CLASSIFIERS = ("scales", "flip", "shift")
"""Fields of `InferenceConfig` with a meaning for classifiers."""


@config("inference")
class InferenceConfig:
    """How an image of any size is labeled by a network of one size; of classifiers: which views of it are averaged."""

    mode: Literal["slide", "whole"] = "slide"
    """slide: overlapping windows of the network's size over the image, its aspect kept; whole: the image squeezed into one
    window, which is fastest."""
    short_side: PositiveInt | None = None
    """Length in pixels that the image's short side is resized to before windows are cut; the long side becomes at most four
    times as long. None takes the network's own size (official)."""
    stride: PositiveInt | None = None
    """Pixels from one window to the next; None takes two thirds of a window (official: 341 of 512, 426 of 640)."""
    scales: Annotated[tuple[float, ...], Bounds(gt=0, min_length=1)] = (1.0,)
    """Multiples of the short side whose probabilities are averaged (official multi-scale: 0.5 0.75 1.0 1.25 1.5 1.75). Of
    classifiers: of the image, around its center, whose logits are averaged, as those of all views."""
    flip: bool = False
    """Whether the mirrored image is averaged in, too."""
    window_batch: PositiveInt = 4
    """Windows per forward pass."""
    shift: NonNegativeInt = later(0)
    """Of classifiers: pixels by which the image is moved up, down, left and right to be averaged in, too."""

    def __post_init__(self) -> None:
        for name, usual in (("short_side", None), ("stride", None), ("scales", (1.0,))):
            if self.mode == "whole" and getattr(self, name) != usual:
                raise UserError(f"`inference.{name}` has no meaning with `inference.mode='whole'`; leave it out, or slide")

    @property
    def words(self) -> str:
        """The settings that are not usual, for people."""
        side = "" if self.short_side is None else f", short side {self.short_side}"
        stride = "" if self.stride is None else f", stride {self.stride}"
        scales = "" if self.scales == (1.0,) else f", scales {' '.join(f'{scale:g}' for scale in self.scales)}"
        return f"{self.mode}{side}{stride}{scales}{', mirrored too' if self.flip else ''}"

    @property
    def view_words(self) -> str:
        """The views of a classifier that are averaged, for people; empty for the image alone."""
        scales = "" if self.scales == (1.0,) else f"scales {' '.join(f'{scale:g}' for scale in self.scales)}"
        shift = f"shifted by {self.shift} pixel{'' if self.shift == 1 else 's'}" if self.shift else ""
        return ", ".join(filter(None, (scales, "mirrored too" if self.flip else "", shift)))

    def refuse_windows(self) -> None:
        """Raise a `UserError` for what only segmenters can do."""
        usual = InferenceConfig()
        for field in fields(self):
            if field.name not in OF_CLASSIFIERS and getattr(self, field.name) != getattr(usual, field.name):
                raise UserError(f"`inference.{field.name}` is for segmentation, and this is a classifier; leave it out")

    def refuse_shift(self) -> None:
        """Raise a `UserError` for views that segmenters do not have."""
        if self.shift:
            raise UserError("`inference.shift` is for classifiers, and this is segmentation, whose windows overlap; leave it out")

    def over(self, usual: InferenceConfig) -> InferenceConfig:
        """These settings where they are not the defaults, else the usual ones of a network."""
        default = InferenceConfig()
        changed = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(usual, **{name: value for name, value in changed.items() if value != getattr(default, name)})


def default_palette(count: int) -> tuple[Color, ...]:
    """Colors for classes that have none of their own: the same for the same number everywhere, none of them black."""
    colors = []
    for index in range(count):
        lightness, saturation = (0.45, 0.65, 0.3)[index % 3], (0.75, 0.6)[index % 2]
        red, green, blue = colorsys.hls_to_rgb(0.03 + index * HUE_STEP % 1, lightness, saturation)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)
