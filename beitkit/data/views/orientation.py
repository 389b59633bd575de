"""Flips and quarter turns: one of the eight ways in which a rectangle comes to lie on itself or on its side."""

from __future__ import annotations

import random

import torch
from jaxtyping import Shaped
from PIL.Image import Transpose
from torch import Tensor

from beitkit.configs.data import SceneViewConfig, ViewConfig
from beitkit.data.decoding.decode import SIDEWAYS

Orientation = Transpose | None
"""What is done to an image; None leaves it as it is."""
TURNED: tuple[Orientation, ...] = (None, Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.ROTATE_270)
"""By the number of quarter turns, counterclockwise."""
TURNED_AND_FLIPPED = (Transpose.FLIP_LEFT_RIGHT, Transpose.TRANSVERSE, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE)
"""The same, followed by a horizontal flip."""
FLIPPED_AXES: dict[Orientation, tuple[int, ...]] = {
    None: (),
    Transpose.FLIP_LEFT_RIGHT: (1,),
    Transpose.FLIP_TOP_BOTTOM: (0,),
    Transpose.ROTATE_180: (0, 1),
    Transpose.ROTATE_90: (0,),
    Transpose.ROTATE_270: (1,),
    Transpose.TRANSPOSE: (),
    Transpose.TRANSVERSE: (0, 1),
}
"""The axes along which pixels run backward, after rows and columns have changed places where the image is turned on its side."""


def drawn_turns(view: ViewConfig | SceneViewConfig, rng: random.Random) -> int:
    """How many quarter turns an image gets; nothing is drawn where there are none."""
    if not view.quarter_turns or rng.random() >= view.quarter_turns:
        return 0
    return rng.randint(1, 3)


def drawn_orientation(view: ViewConfig | SceneViewConfig, turns: int, rng: random.Random) -> Orientation:
    """An image's turns with flips after them; a vertical one is drawn only where there are any."""
    is_flipped = rng.random() < view.flip
    is_upside_down = bool(view.vertical_flip) and rng.random() < view.vertical_flip
    # Upside down is flipped and turned by half a circle.
    ways = TURNED if is_flipped == is_upside_down else TURNED_AND_FLIPPED
    return ways[(turns + 2 * is_upside_down) % 4]


def on_its_side(size: tuple[int, int], turns: int) -> tuple[int, int]:
    """(height, width) after, or before, these quarter turns."""
    return size if turns % 2 == 0 else (size[1], size[0])


def oriented(pixels: Shaped[Tensor, "h w *channels"], orientation: Orientation) -> Shaped[Tensor, "rows columns *channels"]:
    """Pixels as `Image.transpose` would have them."""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(0, 1)
    return torch.flip(pixels, FLIPPED_AXES[orientation]) if orientation is not None else pixels
