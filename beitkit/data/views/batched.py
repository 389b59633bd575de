"""Views of whole batches of small images: color jitter and cuts by tensor operations, bit for bit as for one image.

Images of a batch lie in the top left corners of equal frames, black around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.data.decoding.decode import SIDEWAYS
from beitkit.data.views.orientation import FLIPPED_AXES, Orientation

Jitter = Literal["brightness", "contrast", "saturation"]
LUMA = 19595, 38470, 7471
"""Red, green and blue in gray, in 65536ths (Pillow's conversion to "L")."""


def jittered(
    images: UInt8[Tensor, "b c h w"], sizes: Sequence[Pair], jitters: Sequence[Sequence[tuple[Jitter, float]]]
) -> UInt8[Tensor, "b c h w"]:
    """Every image after its own jitters, of which all have equally many; the black around it is changed as black is.

    As Pillow does it: a blend is computed in float32 and cut off to whole numbers, its factor rounded to float32 first. The
    center of contrast is the mean gray of the image, whose size in the frame `sizes` tells; until then black stays black.
    """
    values = images.float()
    for stage in zip(*jitters, strict=True):
        for name in ("brightness", "contrast", "saturation"):
            rows = [row for row, (jitter, _) in enumerate(stage) if jitter == name]
            if not rows:
                continue
            at = torch.tensor(rows)
            factors = torch.tensor([stage[row][1] for row in rows]).view(-1, 1, 1, 1)
            part = values[at]
            if name == "brightness":
                part.mul_(factors)
            else:
                center = _gray(part)
                if name == "contrast":
                    areas = torch.tensor([sizes[row][0] * sizes[row][1] for row in rows], dtype=torch.float64)
                    means = center.flatten(1).sum(1, dtype=torch.float64) / areas
                    center = (means + 0.5).floor().float().view(-1, 1, 1, 1)
                part.sub_(center).mul_(factors).add_(center)
            values[at] = part.clamp_(0, 255).trunc_()
    return values.to(torch.uint8)


def _gray(values: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Gray of whole numbers, rounded as Pillow rounds it."""
    if values.shape[1] == 1:
        return values.clone()
    red, green, blue = values.to(torch.int32).unbind(1)
    return ((red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000) >> 16).float().unsqueeze(1)


def cut_alike(
    images: Shaped[Tensor, "b c rows columns"], corners: Sequence[Pair], size: Pair, orientations: Sequence[Orientation]
) -> Shaped[Tensor, "b c h w"]:
    """A part of (height, width) `size` of every frame, from its (top, left) corner on, flipped and turned or not.

    Only squares can be turned on their side.
    """
    height, width = size
    tops, lefts = torch.tensor(corners).T[:, :, None, None]  # (b, 1, 1) each
    flips = [FLIPPED_AXES[orientation] for orientation in orientations]
    down = _running(height, [0 in axes for axes in flips]).unsqueeze(2)
    across = _running(width, [1 in axes for axes in flips]).unsqueeze(1)
    if any(orientation in SIDEWAYS for orientation in orientations):
        is_turned = torch.tensor([orientation in SIDEWAYS for orientation in orientations])[:, None, None]
        down, across = torch.where(is_turned, across, down), torch.where(is_turned, down, across)
    places = ((tops + down) * images.shape[3] + lefts + across).flatten(1).unsqueeze(1)  # (b, 1, h w)
    return images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).view(len(images), -1, height, width)


def _running(length: int, backward: list[bool]) -> Int64[Tensor, "b length"]:
    forward = torch.arange(length)
    return torch.where(torch.tensor(backward)[:, None], length - 1 - forward, forward)
