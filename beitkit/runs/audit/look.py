"""One look at an image: what its file says, and a reduced version; a JPEG is decoded at the scale that is enough for that."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from beitkit.contracts import Batch
from beitkit.data.decoding.decode import (
    JPEGS,
    ORIENTATION,
    SIDEWAYS,
    UPRIGHT,
    Bands,
    BrokenImage,
    Encoded,
    beyond_8_bits,
    bytes_per_pixel,
    check_whole,
    display_name,
    opaque,
    opened_file,
    opened_image,
)
from beitkit.data.decoding.formats import FORMATS
from beitkit.data.decoding.jpeg import decode_jpeg, is_decodable
from beitkit.data.decoding.limit import why_too_large
from beitkit.data.decoding.raw import RawImage, read_raw
from beitkit.data.sources.image_list import ImageList
from beitkit.data.workers import Key
from beitkit.errors import UserError
from beitkit.files import parse_json
from beitkit.runs.audit.alike import SIDE

LEAST = 64
"""Pixels that the short side of a JPEG keeps when it is decoded at a smaller scale."""
SAMPLE = 128
"""Pixels of a row and of a column that are looked at."""
SAME = 2
"""Channels that differ by no more than this are gray."""
PLAIN = {"1": "1-bit", "L": "8-bit gray", "LA": "8-bit gray with transparency", "P": "8-bit palette", "RGB": "8-bit RGB"} | {
    "RGBA": "8-bit RGB with transparency",
    "CMYK": "8-bit CMYK",
}
"""Pillow's modes, in words."""

LOOK = np.dtype(
    [
        ("is_read", "?"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("bytes", "<i8"),
        ("channels", "<i2"),
        ("is_deep", "?"),
        ("is_gray", "?"),
        ("is_color_file", "?"),
        ("is_turned", "?"),
        ("low", "<f8"),
        ("high", "<f8"),
        ("thumbnail", "u1", (SIDE, SIDE)),
    ]
)
"""What is kept of an image: size (upright), bytes of the file, channels, whether it has more than 8 bits or other channels than
gray and RGB, shows gray, is stored with colors, is turned by EXIF; its lowest and highest value, and 16x16 gray pixels."""


class Looks(NamedTuple):
    """What was seen of several images."""

    table: np.ndarray
    """Of `LOOK`, a row for each image; zeros for one that cannot be read."""
    formats: list[str]
    """Pillow's names, or NUMPY, DICOM, BANDS; empty where it cannot be read."""
    kinds: list[str]
    """How numbers are stored, in words."""
    broken: list[tuple[int, str]]
    """Place in the list, and why."""
    counts: np.ndarray
    """How many pixels of all 8-bit images have each of the 256 values."""


class Looker:
    """Looks at the images of a list; what worker processes are given."""

    def __init__(self, files: ImageList) -> None:
        self.files = files

    def __call__(self, keys: list[Key]) -> Batch:
        """The images that the keys name, packed as tensors, which is what workers hand over; `unpacked` reads them."""
        table = np.zeros(len(keys), dtype=LOOK)
        formats, kinds, broken = [""] * len(keys), [""] * len(keys), []
        counts = np.zeros(256, dtype=np.int64)
        for place, (_, index, _) in enumerate(keys):
            try:
                formats[place], kinds[place] = look(self.files.source(index), table[place : place + 1], counts)
            except BrokenImage as error:
                table[place] = np.zeros((), dtype=LOOK)
                broken.append((index, error.reason))
        words = json.dumps([formats, kinds, broken]).encode()
        packed = (table.tobytes(), words)
        table_bytes, word_bytes = (torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in packed)
        return {"table": table_bytes, "words": word_bytes, "counts": torch.from_numpy(counts)}


def unpacked(batch: Batch) -> Looks:
    """What a `Looker` saw."""
    formats, kinds, broken = parse_json(batch["words"].numpy().tobytes())
    table = np.frombuffer(batch["table"].numpy().tobytes(), dtype=LOOK)
    return Looks(table, formats, kinds, [(index, reason) for index, reason in broken], batch["counts"].numpy())


def look(source: object, row: np.ndarray, counts: np.ndarray) -> tuple[str, str]:
    """Fill a row of `LOOK`, add to the counts of values; returns format and kind.

    Raises:
        BrokenImage: the image cannot be read to its end, or is too large.
    """
    if isinstance(source, Bands):
        raw = read_raw(source)
        row["bytes"] = sum(path.stat().st_size for path in source.paths)
        return "BANDS", _deep(raw, row)
    encoded = _in_memory(source)  # type: ignore[arg-type] - a path, or bytes already
    row["bytes"] = len(encoded.content)
    beyond = False
    try:
        with opened_image(encoded) as image:
            beyond = beyond_8_bits(image) is not None
            if not beyond:
                name = image.format if image.format in FORMATS else "JPEG"  # MPO: several JPEGs, one after the other
                return name or "", _plain(image, encoded, row, counts)
            name = str(image.format)
    except BrokenImage:
        start = encoded.content[:132]
        is_other = start.startswith((b"\x93NUMPY", b"PK\x03\x04", b"II", b"MM")) or start[128:] == b"DICM"
        if row["is_read"][0] or not (beyond or is_other):
            raise
        name = "DICOM" if start[128:] == b"DICM" else "NUMPY" if start[:2] in (b"\x93N", b"PK") else "TIFF"
    return name, _deep(read_raw(encoded), row)


def _in_memory(source: object) -> Encoded:
    """The file of an image, read once."""
    if isinstance(source, Encoded):
        return source
    path = display_name(source)  # type: ignore[arg-type]
    try:
        with opened_file(path) as file:
            return Encoded(path, file.read())
    except OSError as error:
        raise BrokenImage(path, error.strerror or type(error).__name__) from error


def _plain(image: Image.Image, encoded: Encoded, row: np.ndarray, counts: np.ndarray) -> str:
    """An 8-bit image, inside of `opened_image`."""
    width, height = image.size
    if (reason := why_too_large(width, height, bytes_per_pixel(image, "RGB"))) is not None:
        raise BrokenImage(encoded.path, reason)
    mode, kind = image.mode, PLAIN.get(image.mode, f"8-bit {image.mode}")
    pixels, turn = _pixels(image, encoded)
    sampled = pixels[:: max(1, pixels.shape[0] // SAMPLE), :: max(1, pixels.shape[1] // SAMPLE)]
    counts += np.bincount(sampled.ravel(), minlength=256)
    row["is_gray"] = pixels.ndim == 2 or (_is_gray(sampled) and _is_gray(pixels))
    row["is_color_file"] = mode not in ("1", "L", "LA", "La", "P", "PA")
    row["channels"] = 1 if pixels.ndim == 2 else 3
    row["is_turned"] = turn is not None
    row["low"], row["high"] = sampled.min(), sampled.max()
    row["width"], row["height"] = (height, width) if turn in SIDEWAYS else (width, height)
    row["thumbnail"] = _reduced(Image.fromarray(pixels).convert("L"), turn)
    row["is_read"] = True
    return kind


def _pixels(image: Image.Image, encoded: Encoded) -> tuple[UInt8[np.ndarray, "h w *c"], Image.Transpose | None]:
    """The pixels as they are stored, of a JPEG reduced, and what turns them upright."""
    mode, size = image.mode, (image.height, image.width)
    wanted = "L" if mode in ("1", "L", "LA", "La") else "RGB"
    if image.format not in JPEGS:
        image.load()
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))  # after it, as it may stand at a file's end
        return np.asarray(opaque(image, wanted)), turn
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    reduction = next((by for by in (8, 4, 2) if min(size) >= by * LEAST), 1)
    if is_decodable(mode, size) and (pixels := decode_jpeg(encoded.content, mode, size, reduction)) is not None:
        return pixels, turn
    if reduction > 1:
        image.draft(None, (size[1] // reduction, size[0] // reduction))  # type: ignore[arg-type] - None keeps the colors
    check_whole(image)
    image.load()
    return np.asarray(opaque(image, wanted)), turn


def _is_gray(pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
    wide = pixels.astype(np.int16)
    return bool(np.abs(wide[..., 1:] - wide[..., :1]).max() <= SAME)


def _deep(raw: RawImage, row: np.ndarray) -> str:
    """Any other image; what is reduced is stretched from its lowest to its highest value."""
    channels = len(raw.values) - raw.has_alpha
    values = raw.values[:channels]
    height, width = values.shape[1:]
    step = max(1, height // SAMPLE), max(1, width // SAMPLE)
    sampled = values[:, :: step[0], :: step[1]].astype(np.float64)
    finite = sampled[np.isfinite(sampled)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    gray = np.nan_to_num(sampled.mean(axis=0), nan=low, posinf=high, neginf=low)
    shown = (gray - low) / (high - low) * 255 if high > low else np.zeros_like(gray)
    row["is_deep"], row["channels"], row["is_gray"] = True, channels, channels == 1
    row["is_color_file"] = channels > 1
    row["low"], row["high"], row["width"], row["height"] = low, high, width, height
    row["thumbnail"] = _reduced(Image.fromarray(shown.clip(0, 255).astype(np.uint8)), None)
    row["is_read"] = True
    counted = "gray" if channels == 1 else "RGB" if channels == 3 else f"{channels} channels"
    return f"{values.dtype} {counted}" + (" with transparency" if raw.has_alpha else "")


def _reduced(gray: Image.Image, turn: Image.Transpose | None) -> UInt8[np.ndarray, "16 16"]:
    """A gray image as 16x16 pixels, upright."""
    small = gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC)  # a box would depend on how the sides divide
    return np.asarray(small if turn is None else small.transpose(turn))


def shown_image(source: object, side: int) -> Image.Image | None:
    """An image for a contact sheet, at most this large; None where it cannot be read."""
    with suppress(BrokenImage, UserError):
        if not isinstance(source, Bands):
            with suppress(BrokenImage), opened_image(source) as image:  # type: ignore[arg-type]
                if beyond_8_bits(image) is None:
                    if image.format in JPEGS:
                        image.draft(None, (2 * side, 2 * side))  # type: ignore[arg-type]
                    image.load()
                    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
                    small = opaque(image, "RGB")
                    small.thumbnail((side, side))
                    return small if turn is None else small.transpose(turn)
        raw = read_raw(cast(Bands, source))
        values = raw.values[: len(raw.values) - raw.has_alpha].astype(np.float64)
        values = values[:3] if len(values) >= 3 else values[:1].repeat(3, axis=0)
        low, high = np.nanmin(values), np.nanmax(values)
        pixels = np.nan_to_num((values - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)
        small = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        small.thumbnail((side, side))
        return small
    return None
