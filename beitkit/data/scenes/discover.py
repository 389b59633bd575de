"""Classes of masks that nothing describes: the values that occur in them.

Masks that were smoothed when they were resized, or that were once JPEGs, have values between those of their classes, few of
each and only along edges. Trained on, each would be a class of its own, so they are refused unless they are meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.model import MAX_CLASSES
from beitkit.contracts import IGNORED
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.scenes.label_codes import SHOWN, LabelMapping, plain_code
from beitkit.data.scenes.masks import NUM_VALUES, Mask, read_mask, unpacked
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError, few

RARE = 0.03
"""Share of all pixels below which a value may be one that smoothing made."""
INSIDE = 0.1
"""Share of a value's pixels that lie amid their own kind (all eight neighbors alike) below which it is found along edges only."""
FEWEST = 3
"""Values of this kind that make masks suspicious, if they are also more than the others."""


def discovered(masks: ImageList, chosen: Iterable[int], beside: Path | str, *, is_each_meant: bool) -> LabelMapping:
    """Every value that occurs in the chosen masks is a class, but 255.

    Args:
        masks: the masks.
        chosen: indices of those that are read.
        beside: the `classes.json` that could say what they mean, in messages.
        is_each_meant: whether values count that look as if smoothing had made them.

    Raises:
        UserError: a mask that cannot be read, colors, fewer than two values or too many, or values that smoothing made.
    """
    pixels, inside = np.zeros(NUM_VALUES, dtype=np.int64), np.zeros(NUM_VALUES, dtype=np.int64)
    palette: Mask | None = None
    for index in chosen:
        try:
            mask = read_mask(masks.source(index))
        except BrokenImage as error:
            raise UserError(f"the mask {error}") from error
        if mask.is_color:
            raise UserError(_colors_without_table(mask, beside))
        palette = mask if palette is None and mask.palette else palette
        pixels += np.bincount(mask.pixels.ravel(), minlength=NUM_VALUES)
        inside += np.bincount(_amid_their_own(mask.pixels), minlength=NUM_VALUES)
    values = [int(value) for value in np.flatnonzero(pixels) if value != IGNORED]
    if len(values) < 2:
        also = " besides 255, which is ignored unless a classes.json says otherwise" if pixels[IGNORED] else ""
        example = json.dumps({"names": ["background", "object"], "ids": {"0": 0, "255": 1}, "ignore": []})
        raise UserError(f"the masks in {masks.root} hold only the value {values}{also}; write {beside}, such as {example}")
    if not is_each_meant:
        _refuse_smoothed(pixels, inside, masks, beside)
    if len(values) > MAX_CLASSES:
        raise UserError(
            f"the masks in {masks.root} hold {len(values)} values, more than {MAX_CLASSES} classes (do they number objects?); "
            f"say in {beside} which value is which class"
        )
    colors = palette.palette if palette is not None else ()
    shown = [colors[value] for value in values if value < len(colors)]
    # A palette that gives a color twice, or none to some class, was not made to tell classes apart.
    shown = shown if len(set(shown)) == len(values) else []
    source = f"the list of values found in {masks.root}"
    return plain_code([f"class {value}" for value in values], source, values=values, palette=shown)


def _amid_their_own(pixels: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """The values of pixels whose eight neighbors have the same one."""
    height, width = pixels.shape
    center = pixels[1:-1, 1:-1]
    is_alike = np.ones(center.shape, dtype=np.bool_)
    for row in range(3):
        for column in range(3):
            is_alike &= pixels[row : height - 2 + row, column : width - 2 + column] == center
    return center[is_alike]


def _refuse_smoothed(pixels: NDArray[np.int64], inside: NDArray[np.int64], masks: ImageList, beside: Path | str) -> None:
    found = np.flatnonzero(pixels)
    is_stray = (pixels[found] < RARE * pixels.sum()) & (inside[found] < INSIDE * pixels[found])
    strays, others = found[is_stray].tolist(), found[~is_stray].tolist()
    if len(strays) < max(FEWEST, len(others) + 1):
        return
    raise UserError(
        f"the masks in {masks.root} hold {len(found)} values, {len(strays)} of them rare and along edges only "
        f"({few(strays, SHOWN)}), as in smoothed or JPEG copies of masks with {few(others, SHOWN) or 'other values'}; make them "
        f"anew without smoothing (nearest neighbor, PNG), say in {beside} which value is which class, or give `all_values` if "
        "each is one"
    )


def _colors_without_table(mask: Mask, beside: Path | str) -> str:
    found = [list(color) for color in unpacked(mask.occurring())]
    example = json.dumps({"names": ["one", "two"], "colors": [[*found, [0, 0, 0]][0], [255, 255, 255]]})
    return (
        f"{mask.path} holds colors ({few(found, SHOWN)}) and nothing says which class each is; write {beside}, such as {example}"
    )
