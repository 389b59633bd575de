"""One way to read an image, whatever network it is for: 8-bit gray and RGB by Pillow, everything else as a `DeepImage`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from beitkit.configs.data import ValueRange
from beitkit.configs.model import Pair
from beitkit.data.decoding.decode import (
    Bands,
    BrokenImage,
    Encoded,
    Header,
    StoredImage,
    display_name,
    image_header,
    image_mode,
    image_to_crop,
    stored_size,
    to_tensor,
)
from beitkit.data.decoding.deep import LUMA, DeepImage
from beitkit.data.decoding.raw import RawImage, raw_size, read_raw

AnyImage = Image.Image | DeepImage
BYTES = (0.0, 255.0)
"""The values of 8-bit images."""


def is_deep(channels: int, value_range: ValueRange | None) -> bool:
    """Whether images of this many channels and this range are read as `DeepImage`s."""
    return value_range is not None or channels not in (1, 3)


def readable_image(
    source: Path | Encoded | Bands, channels: int, value_range: ValueRange | None = None, smallest: Pair = (1, 1)
) -> AnyImage | StoredImage:
    """An image, upright; a JPEG for an 8-bit network is not decoded yet.

    Args:
        source: what it is read from.
        channels: how many the network has. Gray is shown to all of RGB's; RGB becomes gray; other numbers have to fit.
        value_range: which values are 0 and 1 in each channel; None is 0 to 255.
        smallest: (height, width) of the smallest image that counts.

    Raises:
        BrokenImage: the file cannot be read, is too large or too small, or has other channels, or, for a network of 8-bit images,
            more than 8 bits.
    """
    if not is_deep(channels, value_range):
        if isinstance(source, Bands):
            raise BrokenImage(source.path, f"has {len(source.paths)} bands, the network takes {channels} channels of 8 bits")
        return image_to_crop(source, channels, smallest=smallest)
    image = scaled(read_raw(source), channels, value_range, display_name(source))
    if min(image.size) < min(smallest) or max(image.size) < max(smallest):
        raise BrokenImage(
            display_name(source), f"{image.width}x{image.height} pixels, smaller than a patch of {smallest[1]}x{smallest[0]}"
        )
    return image


def whole_image(
    source: Path | Encoded | Bands, channels: int, value_range: ValueRange | None = None, smallest: Pair = (1, 1)
) -> AnyImage:
    """The same, decoded."""
    image = readable_image(source, channels, value_range, smallest)
    return image.decoded() if isinstance(image, StoredImage) else image


def scaled(raw: RawImage, channels: int, value_range: ValueRange | None, path: Path) -> DeepImage:
    """An image's own numbers as a network of these channels and this range takes them, in [0, 1].

    Values outside of the range are cut off; what is no number (NaN, as for no data) becomes 0. Where there is transparency, the
    image is laid on white.

    Raises:
        BrokenImage: the image has other channels.
    """
    bands = len(raw.values) - raw.has_alpha
    if bands != channels and (bands, channels) not in ((1, 3), (3, 1)):
        raise BrokenImage(path, f"has {bands} channels, the network takes {channels}")
    values = raw.values[:bands].astype(np.float32)
    if bands > channels:
        values = np.tensordot(np.array(LUMA, dtype=np.float32), values, 1)[None]
    elif bands < channels:
        values = np.repeat(values, channels, axis=0)
    low, high = np.array(value_range or (BYTES,) * channels, dtype=np.float32).T[:, :, None, None]
    values -= low  # in place, as are the others: each copy would take as much memory as the image
    values /= high - low
    shown = np.nan_to_num(values, copy=False, nan=0.0).clip(0, 1, out=values)
    if raw.has_alpha:
        alpha = raw.values[bands].astype(np.float32) / float(
            np.iinfo(raw.values.dtype).max if raw.values.dtype.kind == "u" else 1
        )
        shown = shown * alpha + (1 - alpha)
    return DeepImage(shown.astype(np.float32, copy=False))


def blank(channels: int, value_range: ValueRange | None) -> AnyImage:
    """A small black image, in place of one that cannot be read."""
    if is_deep(channels, value_range):
        return DeepImage(np.zeros((channels, 8, 8), dtype=np.float32))
    return Image.new(image_mode(channels), (8, 8))


def header_of(source: Path | Encoded | Bands) -> Header:
    """Size and orientation of an image; what Pillow cannot open is read upright.

    Raises:
        BrokenImage: the image cannot be read.
    """
    if isinstance(source, Bands):
        return header_of(source.paths[0])
    try:
        return image_header(source)
    except BrokenImage:
        return Header(raw_size(source), None)


def size_of(source: Path | Encoded | Bands) -> Pair:
    """Width and height as stored, from the header where that is enough.

    Raises:
        BrokenImage: the image cannot be read.
    """
    if isinstance(source, Bands):
        return size_of(source.paths[0])
    try:
        return stored_size(source)
    except BrokenImage:
        return raw_size(source)  # which Pillow cannot open


def as_tensor(image: AnyImage) -> Shaped[Tensor, "c h w"]:
    """The pixels of an image: uint8, or of a deep one float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.values)) if isinstance(image, DeepImage) else to_tensor(image)
