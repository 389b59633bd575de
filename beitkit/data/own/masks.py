"""Label maps that a caller of the Python functions has beside images: items (image, label_map) of a dataset.

A label map is turned into the bytes of a file, as images are, so that all that holds of mask files holds of it.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from beitkit.contracts import MapDataset
from beitkit.data.decoding.decode import BrokenImage, Encoded, upright
from beitkit.data.own.encode import netpbm, said
from beitkit.data.own.images import LastItem, OwnImages
from beitkit.errors import UserError

LARGEST = np.iinfo(np.uint16).max
"""The largest value that masks in files may have."""
EXPECTED_LABEL_MAP = f"a Pillow image of mode L, P, I or RGB, or whole numbers (h, w) from 0 to {LARGEST} as an array or a tensor"
"""What `encoded_label_map` takes, in words."""
AS_PNG = ("1", "P", "LA", "RGB", "RGBA")
"""Modes of Pillow that keep more than values in a file: a palette, or several channels."""


class OwnMasks(OwnImages):
    """The label maps of a caller's dataset, by the numbers of its items."""

    SECOND = "label_map"

    @classmethod
    def beside(cls, images: OwnImages) -> tuple[OwnImages, OwnMasks]:
        """The images, and the label maps of the same items; of one item both are read at once.

        Raises:
            UserError: an item without a label map, or with something else in its place.
        """
        masks = cls.of(images.dataset)
        dataset: MapDataset = LastItem(images.dataset)
        is_repeatable = images.is_repeatable and masks.is_repeatable
        return replace(images, dataset=dataset, is_repeatable=is_repeatable), replace(masks, dataset=dataset)

    def source(self, index: int) -> Encoded:
        """The label map of an item, as a file.

        Raises:
            BrokenImage: the dataset raised something.
            UserError: there is none, or it is something else.
        """
        _, label_map = self._parts(self._item(index), index)
        if label_map is None:
            raise UserError(f"{self.path(index)} has no label map; expected a pair (image, label_map)")
        try:
            return Encoded(self.path(index), encoded_label_map(label_map))
        except TypeError as error:
            hint = "; labels are for classification" if isinstance(label_map, int | str | np.integer) else ""
            raise UserError(f"{self.path(index)} has {error} for a label map; expected {EXPECTED_LABEL_MAP}{hint}") from None
        except Exception as error:
            raise BrokenImage(self.path(index), said(error)) from error


def encoded_label_map(label_map: object) -> bytes:
    """The bytes of a file that holds exactly these values, uncompressed, or as PNG where there is a palette or color.

    Args:
        label_map: as `EXPECTED_LABEL_MAP` says; Pillow images are turned upright, and truth values are 0 and 1.

    Raises:
        TypeError: it is something else; says what came.
    """
    if isinstance(label_map, Image.Image):
        label_map = upright(label_map, label_map)
        if label_map.mode in AS_PNG and not _exceeds_palette(label_map):
            file = io.BytesIO()
            label_map.save(file, "PNG", compress_level=1, exif=b"")
            return file.getvalue()
        if label_map.mode not in ("L", "P") and not label_map.mode.startswith("I"):
            raise TypeError(f"a Pillow image of mode {label_map.mode}")
        return _values(np.asarray(label_map), "a Pillow image")
    if isinstance(label_map, Tensor):
        if label_map.is_floating_point():
            raise TypeError(f"a tensor of shape {tuple(label_map.shape)} and type {label_map.dtype}")
        return _values(label_map.detach().cpu().numpy(), "a tensor")
    if isinstance(label_map, np.ndarray):
        return _values(label_map, "an array")
    raise TypeError(f"a {type(label_map).__name__}")


def _exceeds_palette(label_map: Image.Image) -> bool:
    """Whether values would be cut off in a file, which has fewer bits where the palette has no more than 16 colors."""
    colors = len(label_map.getpalette("RGB") or []) // 3 if label_map.mode == "P" else 256
    return colors <= 16 and int(np.asarray(label_map).max()) >= colors


def _values(values: Shaped[np.ndarray, ...], what: str) -> bytes:
    """Whole numbers as gray of 8 or 16 bits."""
    kind: Any = values.dtype.kind
    if values.ndim != 2 or 0 in values.shape or kind not in "uib":
        raise TypeError(f"{what} of shape {values.shape} and type {values.dtype}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > LARGEST:
        raise TypeError(f"{what} with values from {low} to {high}")
    return netpbm(values[..., None].astype(np.uint8 if high < 256 else np.uint16))
