"""An image in memory as the bytes of a file that holds exactly it, so that it is read as any other file is.

And what the objects that a caller gives are called in messages.
"""

from __future__ import annotations

import inspect
import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from beitkit.configs.data import MOST_CHANNELS
from beitkit.data.decoding.decode import one_line, opaque, upright
from beitkit.errors import GIVEN

EXPECTED = f"a Pillow image, an array (h, w) or (h, w, c), or a tensor (h, w) or (c, h, w), of 1 to {MOST_CHANNELS} channels"
"""What `encoded` takes, in words."""
EXACT = 1e-3
"""How near 255 times a float has to be to a whole number for it to be one of 8 bits."""


def encoded(image: object) -> bytes:
    """The bytes of a file that holds this image, uncompressed: netpbm for 8-bit gray and RGB, else an array of NumPy's.

    Args:
        image: as `EXPECTED` says. Pillow images of 8 bits become gray or RGB, upright, on white where they are transparent.
            Floats that are all whole multiples of 1/255, such as torchvision's ToTensor makes, are the 8-bit images they were.

    Raises:
        TypeError: it is something else; says what came.
    """
    if isinstance(image, Image.Image):
        if image.mode.startswith("I") or image.mode == "F":
            return _array(np.asarray(upright(image, image))[None])
        mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        pixels = np.asarray(upright(opaque(image, mode), image))
        return netpbm(pixels[..., None] if pixels.ndim == 2 else pixels)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"a {type(image).__name__}")
    pixels = _channels_last(image)
    if pixels.dtype.kind == "f" and pixels.shape[2] in (1, 3):
        bytewise = np.rint(pixels * 255)
        if bytewise.min() >= 0 and bytewise.max() <= 255 and np.abs(pixels * 255 - bytewise).max() < EXACT:
            pixels = bytewise.astype(np.uint8)
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        return netpbm(pixels)
    return _array(pixels.transpose(2, 0, 1))


def _channels_last(image: np.ndarray | Tensor) -> Shaped[np.ndarray, "h w c"]:
    """An array or tensor as (h, w, c).

    Raises:
        TypeError: it is not an image.
    """
    what = f"{'a tensor' if isinstance(image, Tensor) else 'an array'} of shape {tuple(image.shape)} and type {image.dtype}"
    if isinstance(image, Tensor):
        # NumPy has no bfloat16; in float32 it is the same number.
        image = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu()
        pixels = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    else:
        pixels = image
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] > MOST_CHANNELS or pixels.dtype.kind not in "uif":
        raise TypeError(what)
    return pixels


def netpbm(pixels: Shaped[np.ndarray, "h w c"]) -> bytes:
    """Gray or RGB, uint8 or uint16, as a file."""
    height, width, channels = pixels.shape
    header = b"P%d %d %d %d\n" % (6 if channels == 3 else 5, width, height, np.iinfo(pixels.dtype).max)
    return header + pixels.astype(pixels.dtype.newbyteorder(">"), copy=False).tobytes()


def _array(values: Shaped[np.ndarray, "c h w"]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    return file.getvalue()


def named(given: object) -> str:
    """Module and class of an object, or of a function its own name."""
    kind: Any = given if isinstance(given, type) or inspect.isroutine(given) else type(given)
    return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"


def described(given: object, more: str = "") -> str:
    """What files and messages have in the place of an object that a caller gave."""
    return f"{GIVEN}{named(given)}{more}>"


def said(error: Exception) -> str:
    """What a caller's code raised, in a few words."""
    return f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
