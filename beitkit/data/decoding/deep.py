"""Images of any number of channels in floating point: what is read of files that 8-bit gray or RGB cannot hold.

A `DeepImage` has the part of Pillow's interface that the views use, so that they crop, flip and resize it as they do any other
image; only what looks at values (jitter, some operations of RandAugment) tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in gray (ITU-R 601-2, as Pillow has it)."""
# By PyTorch, which is faster than Pillow on floats; Lanczos came to it later than the others, so it is left to Pillow.
FILTERS = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
TURNS: dict[Image.Transpose, Callable[[np.ndarray], np.ndarray]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda x: x[:, :, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda x: x[:, ::-1],
    Image.Transpose.ROTATE_90: lambda x: np.rot90(x, 1, (1, 2)),
    Image.Transpose.ROTATE_180: lambda x: x[:, ::-1, ::-1],
    Image.Transpose.ROTATE_270: lambda x: np.rot90(x, 3, (1, 2)),
    Image.Transpose.TRANSPOSE: lambda x: x.transpose(0, 2, 1),
    Image.Transpose.TRANSVERSE: lambda x: x[:, ::-1, ::-1].transpose(0, 2, 1),
}


@dataclass(frozen=True, eq=False)
class DeepImage:
    """An upright image whose values lie in [0, 1]; not to be changed."""

    values: Float32[np.ndarray, "c h w"]

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.values)

    @property
    def height(self) -> int:
        """In pixels."""
        return self.values.shape[1]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.values.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    @property
    def mode(self) -> str:
        """ "L" or "RGB" where the channels are these, else their number: what decides which colors there are to change."""
        return {1: "L", 3: "RGB"}.get(self.channels, str(self.channels))

    def crop(self, box: tuple[int, int, int, int]) -> DeepImage:
        """The part between (left, top, right, bottom), 0 where the image has no pixels."""
        left, top, right, bottom = box
        inside = self.values[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        if inside.shape[1:] == (bottom - top, right - left):
            return DeepImage(inside)
        whole = np.zeros((self.channels, bottom - top, right - left), dtype=np.float32)
        above, before = max(-top, 0), max(-left, 0)
        whole[:, above : above + inside.shape[1], before : before + inside.shape[2]] = inside
        return DeepImage(whole)

    def transpose(self, method: Image.Transpose) -> DeepImage:
        """The image flipped or turned."""
        return DeepImage(np.ascontiguousarray(TURNS[method](self.values)))

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        box: tuple[int | float, int | float, int | float, int | float] | None = None,
    ) -> DeepImage:
        """The image, or the part of it in a box, at (width, height) `size`, by the antialiased filters of 8-bit images."""
        if box is None and resample in FILTERS:
            pixels = torch.from_numpy(np.ascontiguousarray(self.values))[None]
            resized = F.interpolate(pixels, (size[1], size[0]), mode=FILTERS[resample], antialias=True)[0].numpy()
            return DeepImage(resized.clip(0, 1))  # bicubic filters overshoot
        return self.by_channel(lambda channel, _: channel.resize(size, resample, box))

    def by_channel(self, change: Callable[[Image.Image, int], Image.Image]) -> DeepImage:
        """Every channel, as an image in mode "F" and with its number, changed in one way."""
        changed = [change(Image.fromarray(values), number) for number, values in enumerate(self.values)]
        return DeepImage(np.stack([np.asarray(channel) for channel in changed]).clip(0, 1))

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> DeepImage:
        """The image with other values, cut off at 0 and 1."""
        return DeepImage(change(self.values).clip(0, 1).astype(np.float32, copy=False))

    def gray(self) -> Float32[np.ndarray, "1 h w"]:
        """Its brightness: that of RGB as the eye has it, else the mean of the channels."""
        if self.channels == 3:
            return np.tensordot(np.array(LUMA, dtype=np.float32), self.values, 1)[None]
        return self.values.mean(axis=0, keepdims=True)
