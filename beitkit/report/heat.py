"""Values of patches as colors: over the image that they belong to, or many small maps side by side.

Maps are float (gh, gw), one value per patch. Dark is little, yellow much (viridis, which also those read who see no red, and
paper without color). An image is float (c, h, w) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.report.images import CELL, enlarge, fit, to_bytes

_VIRIDIS = torch.tensor(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99), (170, 220, 50),
     (253, 231, 37)]
) / 255  # fmt: skip
_COLORS = torch.tensor([(255, 255, 255), (255, 176, 0), (255, 97, 136), (86, 190, 255), (160, 255, 120), (226, 160, 255)]) / 255
"""Frames of the first, second, ... chosen patch."""


def heat(values: Float[Tensor, ...]) -> Float[Tensor, "3 ..."]:
    """The color of every value, from 0 (dark) to 1 (yellow); what lies outside takes the color of the end."""
    places = values.detach().float().cpu().nan_to_num().clamp(0, 1) * (len(_VIRIDIS) - 1)
    low = places.floor().long().clamp(max=len(_VIRIDIS) - 2)
    colors = torch.lerp(_VIRIDIS[low], _VIRIDIS[low + 1], (places - low).unsqueeze(-1))
    return colors.movedim(-1, 0)


def relative(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """The values as shares of the largest; all 0 where none is above 0."""
    return values / values.amax().clamp(min=1e-12)


def scaled_between(values: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """The values with their lowest at 0 and their highest at 1, along the first axis."""
    low, high = values.amin(0), values.amax(0)
    return (values - low) / (high - low).clamp(min=1e-12)


def spread(values: Float[Tensor, "... gh gw"], size: Pair) -> Float[Tensor, "... h w"]:
    """Every patch's value at each of its pixels, of an image of this (height, width)."""
    rows = torch.arange(size[0]) * values.shape[-2] // size[0]
    columns = torch.arange(size[1]) * values.shape[-1] // size[1]
    return values.detach().float().cpu()[..., rows, :][..., columns]


def over_image(
    image: Float[Tensor, "c h w"], values: Float[Tensor, "gh gw"], cell: int = CELL, share: float = 0.6
) -> Float[Tensor, "3 fit_h fit_w"]:
    """The image, in gray and at sheet size, under the colors of its patches' values in [0, 1]."""
    gray = fit(image.detach().float().cpu().mean(0, keepdim=True).clamp(0, 1), cell).expand(3, -1, -1)
    height, width = gray.shape[1:]
    return torch.lerp(gray, heat(spread(values, (height, width))), share)


def framed(
    image: Float[Tensor, "c h w"], grid: Pair, patches: Sequence[int], cell: int = CELL, colors: Sequence[int] | None = None
) -> Float[Tensor, "3 fit_h fit_w"]:
    """The image at sheet size with frames around some of its patches, given by their places in raster order.

    `colors` are the numbers of the frames' colors; None counts from 0.
    """
    shown = to_bytes(fit(image, cell)) / 255
    height, width = shown.shape[1:]
    for number, patch in zip(range(len(patches)) if colors is None else colors, patches, strict=True):
        row, column = divmod(patch, grid[1])
        top, bottom = row * height // grid[0], max((row + 1) * height // grid[0], row * height // grid[0] + 4)
        left, right = column * width // grid[1], max((column + 1) * width // grid[1], column * width // grid[1] + 4)
        for inset, color in ((-1, torch.zeros(3)), (0, _COLORS[number % len(_COLORS)]), (1, _COLORS[number % len(_COLORS)])):
            _draw_frame(shown, top + inset, bottom - inset, left + inset, right - inset, color)
    return shown


def mosaic(maps: Float[Tensor, "rows columns gh gw"], cell: int) -> Float[Tensor, "3 h w"]:
    """Many maps in rows and columns, each relative to its own largest value; the long side is at most about `cell`."""
    rows, columns, height, width = maps.shape
    factor = max(1, cell // max(rows * (height + 1), columns * (width + 1)))
    gap = max(1, factor // 3)
    page = torch.ones(3, rows * (height * factor + gap) - gap, columns * (width * factor + gap) - gap)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height * factor + gap), column * (width * factor + gap)
            tile = enlarge(heat(relative(maps[row, column])), factor)
            page[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    return page


def tiled(tiles: Float[Tensor, "n c h w"], columns: int, gap: int = 1) -> Float[Tensor, "c big_h big_w"]:
    """Small images in rows of `columns`, row by row, with white between them and where the last row ends."""
    count, channels, height, width = tiles.shape
    rows = -(-count // columns)
    page = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for place, tile in enumerate(tiles):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        page[:, top : top + height, left : left + width] = tile
    return page


def _draw_frame(page: Tensor, top: int, bottom: int, left: int, right: int, color: Tensor) -> None:
    """A line of one pixel along the inside of a rectangle, as far as it lies on the page."""
    height, width = page.shape[1:]
    if bottom - top < 1 or right - left < 1:
        return
    across, down = slice(max(0, left), min(width, right)), slice(max(0, top), min(height, bottom))
    for row in (top, bottom - 1):
        if 0 <= row < height:
            page[:, row, across] = color[:, None]
    for column in (left, right - 1):
        if 0 <= column < width:
            page[:, down, column] = color[:, None]
