"""Tensors to images for reports: masked patches, token maps, PNG files, and sheets with labeled columns.

Images are float (c, h, w) in [0, 1], gray (c = 1) or RGB (c = 3). Small ones are enlarged by whole factors with nearest
neighbor, so that the pixels of the network's input are visible; large ones are reduced.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 128
"""Pixels of an image's long side on a sheet."""
_GOLDEN = (math.sqrt(5) - 1) / 2


def to_bytes(image: Float[Tensor, "c h w"]) -> UInt8[Tensor, "3 h w"]:
    """RGB in 0..255; values outside [0, 1] are cut off, values that are not finite become black.

    Of other channels than gray or RGB the first three are shown, or of two the first.
    """
    shown = image[:3] if image.shape[0] >= 3 else image[:1]
    finite = torch.nan_to_num(shown.detach().float().cpu(), nan=0.0, posinf=0.0, neginf=0.0)
    return (finite.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)


def enlarge(image: Float[Tensor, "c h w"], factor: int) -> Float[Tensor, "c big_h big_w"]:
    """Every pixel as a square of factor x factor pixels."""
    return image.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def fit(image: Float[Tensor, "c h w"], cell: int = CELL) -> Float[Tensor, "c fit_h fit_w"]:
    """The image with its long side at most `cell`: enlarged by the largest whole factor, or reduced by averaging."""
    long_side = max(image.shape[1:])
    if long_side <= cell:
        return enlarge(image, cell // long_side)
    height, width = (max(1, round(side * cell / long_side)) for side in image.shape[1:])
    reduced = torch.nn.functional.interpolate(
        image.detach().float().cpu().unsqueeze(0), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return reduced.squeeze(0)


def masked_image(
    image: Float[Tensor, "c h w"], mask: Bool[Tensor, " n"], grid: tuple[int, int], cell: int = CELL
) -> Float[Tensor, "c fit_h fit_w"]:
    """The image at sheet size with its hidden patches (mask True, raster order over `grid` = (rows, columns)) hatched gray."""
    if mask.numel() != grid[0] * grid[1]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches has {grid[0] * grid[1]}, the mask has {mask.numel()}")
    shown = fit(image, cell)
    height, width = shown.shape[1:]
    rows = torch.arange(height).unsqueeze(1)
    columns = torch.arange(width).unsqueeze(0)
    hidden = mask.detach().cpu().unflatten(0, grid)[rows * grid[0] // height, columns * grid[1] // width]  # (h, w)
    stripes = torch.where((rows + columns) % 6 < 2, 0.52, 0.72)
    return torch.where(hidden, stripes.to(shown), shown.cpu())


def token_map(ids: Int[Tensor, "gh gw"], vocabulary: int, cell: int = CELL) -> Float[Tensor, "3 big_h big_w"]:
    """One colored square per visual token; a token has the same color in every image, run and report."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(f"token ids lie in 0..{vocabulary - 1} with a vocabulary of {vocabulary}, got {low}..{high}")
    colors = torch.zeros(vocabulary, 3)
    for token in ids.unique().tolist():
        colors[token] = torch.tensor(_token_color(token))
    return fit(colors[ids.detach().cpu()].permute(2, 0, 1), cell)


def png_bytes(image: Float[Tensor, "c h w"]) -> bytes:
    """The image as the content of a PNG file; gray ones stay gray, which keeps them small."""
    pixels = to_bytes(image)
    pil_image = Image.fromarray(pixels[0].numpy()) if image.shape[0] == 1 else Image.fromarray(pixels.permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    pil_image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sheet(columns: Mapping[str, Float[Tensor, "r c h w"]], cell: int = CELL) -> Float[Tensor, "3 big_h big_w"]:
    """All images on one white sheet, a labeled column for each entry; columns may differ in size and channels.

    Raises `ValueError` without columns or when they do not have the same number of rows.
    """
    rows = check_columns(columns)
    gap, heading = 10, 26
    width, height = len(columns) * (cell + gap) + gap, rows * (cell + gap) + heading
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    font = _font(columns, cell)
    for place, (name, images) in enumerate(columns.items()):
        left = gap + place * (cell + gap)
        draw.text((left + cell / 2, heading / 2), name, fill="black", font=font, anchor="mm")
        for row, image in enumerate(images):
            pixels = to_bytes(fit(image, cell)).permute(1, 2, 0).numpy()
            offset = (left + (cell - pixels.shape[1]) // 2, heading + row * (cell + gap) + (cell - pixels.shape[0]) // 2)
            page.paste(Image.fromarray(pixels), offset)
    data = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8)
    return data.view(height, width, 3).permute(2, 0, 1).float() / 255


def stacked(images: Sequence[Float[Tensor, "3 _ _"]]) -> Float[Tensor, "r 3 h w"]:
    """Images of different sizes on white, as large as the largest."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    page = torch.ones(len(images), 3, height, width)
    for row, image in enumerate(images):
        page[row, :, : image.shape[1], : image.shape[2]] = image
    return page


def check_columns(columns: Mapping[str, Tensor]) -> int:
    """The number of rows that all columns share; `ValueError` if there is none."""
    rows = {name: len(images) for name, images in columns.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise ValueError(f"all columns need the same number of images, and at least one, got {rows or 'no column'}")
    return next(iter(rows.values()))


def _token_color(token: int) -> tuple[float, float, float]:
    # Steps of the golden ratio spread any number of hues evenly; two more shares, out of step with it, vary the brightness.
    hue = token * _GOLDEN % 1
    lightness = (0.42, 0.58, 0.72)[token % 3]
    return colorsys.hls_to_rgb(hue, lightness, 0.45 + 0.3 * (token * _GOLDEN * _GOLDEN % 1))


def _font(names: Iterable[str], width: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The largest of a few sizes at which every name fits into the width."""
    for size in (13, 12, 11, 10):
        font = ImageFont.load_default(size)
        if all(font.getlength(name) <= width for name in names):
            return font
    return ImageFont.load_default(9)
