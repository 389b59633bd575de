"""Label maps as images people look at: in the colors of their classes, overlays, where a prediction is wrong, a legend.

Label maps are uint8 (h, w): class ids; 255 is ignored. Colors are (red, green, blue), 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from beitkit.configs.segmentation import Color
from beitkit.contracts import IGNORED, in_unit_range

IGNORED_COLOR: Color = (0, 0, 0)
RIGHT, WRONG, UNCOUNTED = (0.86, 0.93, 0.87), (0.84, 0.15, 0.16), (0.45, 0.45, 0.45)
"""Colors of an error map, RGB in [0, 1]."""


def colored(label_map: UInt8[Tensor, "h w"], palette: Sequence[Color]) -> Float[Tensor, "3 h w"]:
    """Every pixel in its class's color, in [0, 1]; pixels that do not count are black."""
    table = torch.tensor([IGNORED_COLOR] * 256)
    table[: len(palette)] = torch.tensor(palette)
    table[IGNORED] = torch.tensor(IGNORED_COLOR)
    return table[label_map.long()].permute(2, 0, 1) / 255


def overlay(
    image: Shaped[Tensor, "c h w"], label_map: UInt8[Tensor, "h w"], palette: Sequence[Color], share: float = 0.55
) -> Float[Tensor, "3 h w"]:
    """The image, in gray, under the colors of its classes; `share` is the colors' weight. In [0, 1].

    Pixels that do not count show the image alone.
    """
    gray = in_unit_range(image).mean(0, keepdim=True).expand(3, -1, -1)
    weight = torch.where(label_map == IGNORED, 0.0, share)
    return torch.lerp(gray, colored(label_map, palette), weight)


def error_map(predicted: UInt8[Tensor, "h w"], truth: UInt8[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """Where a prediction is right (pale), wrong (red) and not counted (gray), in [0, 1]."""
    which = torch.where(truth == IGNORED, 2, (predicted != truth).long())
    return torch.tensor([RIGHT, WRONG, UNCOUNTED])[which].permute(2, 0, 1)


def legend(classes: Sequence[str], palette: Sequence[Color], width: int = 720) -> Float[Tensor, "3 h w"]:
    """A swatch and a name for every class, in rows as wide as `width` pixels."""
    font, swatch, gap = ImageFont.load_default(13), 14, 10
    places: list[tuple[float, int]] = []
    left, top = float(gap), gap
    for name in classes:
        needed = swatch + 5 + font.getlength(name) + 2 * gap
        if left > gap and left + needed > width:
            left, top = float(gap), top + swatch + gap
        places.append((left, top))
        left += needed
    page = Image.new("RGB", (width, top + swatch + gap), "white")
    draw = ImageDraw.Draw(page)
    for name, color, (x, y) in zip(classes, palette, places, strict=True):
        draw.rectangle((x, y, x + swatch, y + swatch), fill=color)
        draw.text((x + swatch + 5, y + swatch / 2), name, fill="black", font=font, anchor="lm")
    data = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8)
    return data.view(page.height, width, 3).permute(2, 0, 1).float() / 255
