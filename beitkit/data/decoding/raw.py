"""The numbers of an image's file as they are stored: any type, any number of bands, nothing scaled.

Pillow decodes most kinds of files to 8 bits; here are the ways around it. A TIFF is read by tifffile wherever Pillow's own
reading is wrong or has no place for the numbers (bands of more than 8 bits beside each other or in planes, floats, more than 4
bands), arrays by NumPy, DICOM by pydicom (`pip install 'beitkit[dicom]'`), everything else by Pillow at full depth.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import tifffile
from jaxtyping import Shaped
from PIL import Image

from beitkit.configs.data import MOST_CHANNELS
from beitkit.data.decoding.decode import (
    BITS,
    ORIENTATION,
    PHOTOMETRIC,
    PLANES,
    SAMPLE_FORMAT,
    SAMPLES,
    UPRIGHT,
    Bands,
    BrokenImage,
    Encoded,
    bytes_per_pixel,
    check_whole,
    display_name,
    format_when_whole,
    is_plain,
    one_line,
    opaque,
    opened_file,
    opened_image,
    raw_mode,
)
from beitkit.data.decoding.deep import TURNS
from beitkit.data.decoding.limit import why_too_large, why_too_much_memory

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said in one line, with its name

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE_IS_ZERO = 0
ALPHA = (1, 2)
"""TIFF's ExtraSamples of transparency, associated and not (TIFF 6.0, section 18)."""


class RawImage(NamedTuple):
    """An upright image's own numbers."""

    values: Shaped[np.ndarray, "c h w"]
    has_alpha: bool = False
    """Whether the last channel is how opaque the others are."""
    window: tuple[float, float] | None = None
    """The values that the file itself says are to be shown as black and white (DICOM)."""


def read_raw(source: Path | Encoded | Bands) -> RawImage:
    """The numbers of a file, or of several files with a band each.

    Raises:
        BrokenImage: no image, damaged, too large, with too many channels, or of a kind that cannot be read at its full depth.
    """
    if isinstance(source, Bands):
        return _joined(source)
    start = _start(source)
    if start.startswith(TIFF_STARTS):
        return _tiff(source)
    if start.startswith(b"\x93NUMPY") or (start.startswith(b"PK\x03\x04") and display_name(source).suffix.lower() == ".npz"):
        return _caught(source, _array)
    if start[128:132] == b"DICM":
        return _caught(source, _dicom)
    with opened_image(source) as image:
        return _checked(_by_pillow(image, source), display_name(source))


def whole_format(source: Path | Encoded) -> str:
    """Name of the format (as in `formats`) of an image that can be decoded to its end; a JPEG at 1/8 to find out.

    Raises:
        BrokenImage: it cannot be read.
    """
    start = _start(source)
    with suppress(BrokenImage):
        return format_when_whole(source)
    read_raw(source)
    if start.startswith(b"\x93NUMPY") or start.startswith(b"PK\x03\x04"):
        return "NUMPY"
    if start[128:132] == b"DICM":
        return "DICOM"
    if start.startswith(TIFF_STARTS):
        return "TIFF"
    with opened_image(source) as image:
        return str(image.format)


def raw_size(source: Path | Encoded | Bands) -> tuple[int, int]:
    """(width, height) of an image that `read_raw` reads."""
    height, width = read_raw(source).values.shape[1:]
    return width, height


def _start(source: Path | Encoded) -> bytes:
    with opened_binary(source) as file:
        return file.read(132)


def opened_binary(source: Path | Encoded) -> io.BufferedIOBase:
    """The bytes of a file.

    Raises:
        BrokenImage: it cannot be opened, or is no regular file.
    """
    try:
        return opened_file(source)
    except OSError as error:
        raise BrokenImage(display_name(source), error.strerror or type(error).__name__) from error


def _caught(source: Path | Encoded, read: Any) -> RawImage:
    """What a reader makes of a file; whatever goes wrong with it becomes a `BrokenImage`."""
    path = display_name(source)
    try:
        with opened_binary(source) as file:
            raw: RawImage = read(file, path)
    except BrokenImage:
        raise
    except Exception as error:  # readers raise nearly every type there is on damaged bytes
        raise BrokenImage(path, one_line(error)) from error
    return _checked(raw, path)


def _checked(raw: RawImage, path: Path) -> RawImage:
    channels, height, width = raw.values.shape
    if raw.values.dtype.kind not in "uifb" or 0 in raw.values.shape:
        raise BrokenImage(path, f"holds {raw.values.dtype} of shape {raw.values.shape}, which is no image")
    if channels - raw.has_alpha > MOST_CHANNELS:
        raise BrokenImage(path, f"has {channels} channels, more than {MOST_CHANNELS}")
    _check_size(path, width, height, channels, raw.values.dtype)
    return raw


def _check_size(path: Path, width: int, height: int, channels: int, kind: np.dtype[Any]) -> None:
    """Raise for an image that is too large, as it is stored and as the 32-bit floats that are made of it."""
    if (reason := why_too_large(width, height, channels * max(kind.itemsize, 4))) is not None:
        raise BrokenImage(path, reason)


def _by_pillow(image: Image.Image, source: Path | Encoded) -> RawImage:
    """Inside of `opened_image`: what Pillow decodes, with all its bits."""
    plain, stored = is_plain(image), raw_mode(image)
    # Besides what Pillow decodes, floats: of more than 8 bits, twice what it keeps of them.
    per_pixel = bytes_per_pixel(image, image.mode) + 4 * len(image.getbands())
    if (reason := why_too_large(*image.size, per_pixel)) is not None:
        raise BrokenImage(display_name(source), reason)
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))  # after these: it may decode the image, which forgets them
    if plain:
        check_whole(image)
        image.load()
        pixels = np.asarray(opaque(image, "L" if image.mode in ("1", "L", "LA") else "RGB"))
        raw = RawImage(_channels_first(pixels))
    elif ";16" in stored and image.mode in ("RGB", "RGBA"):
        raw = RawImage(_channels_first(_wide(source, str(image.format), stored)), has_alpha=image.mode == "RGBA")
    else:
        image.load()
        raw = RawImage(np.asarray(image)[None])
    return raw if turn is None else raw._replace(values=np.ascontiguousarray(TURNS[turn](raw.values)))


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _wide(source: Path | Encoded, format: str, stored: str) -> np.ndarray:
    """The 16 bits of RGB or RGBA of which Pillow keeps the upper 8, (h, w, c).

    Its unpackers take one of the two bytes of each number, by the order in which they believe them to be stored: decoded in
    either order, a file gives both.
    """
    if format not in ("PNG", "TIFF") or stored.startswith("LA"):
        raise ValueError("only 8 of its 16 bits can be read; save it as PNG or TIFF, without transparency if it is gray")
    halves = {}
    for order in ("B", "L"):
        with opened_image(source) as again:
            tiles = again.tile  # type: ignore[attr-defined] - an image that was opened has its tiles
            again.tile = [tile._replace(args=_in_order(tile.args, order)) for tile in tiles]  # type: ignore[attr-defined]
            again.load()
            halves[order] = np.asarray(again).astype(np.uint16)
    is_big = stored.endswith("B") or (stored.endswith("N") and sys.byteorder == "big")
    upper, lower = (halves["B"], halves["L"]) if is_big else (halves["L"], halves["B"])
    return upper << 8 | lower


def _in_order(args: Any, order: str) -> Any:
    """A decoder's arguments with another order of bytes: `RGB;16B`, or a tuple that begins with that."""
    return args[:-1] + order if isinstance(args, str) else (args[0][:-1] + order, *args[1:])


def _tiff(source: Path | Encoded) -> RawImage:
    """A TIFF: by Pillow where it decodes all numbers, else by tifffile; where white is zero, that is turned round."""
    try:
        with opened_image(source) as image:
            tags = image.tag_v2  # type: ignore[attr-defined]
            by_pillow, is_white_zero = _has_all(image), tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and not is_plain(image)
    except BrokenImage:  # Pillow has no mode for such numbers, or the file is damaged: tifffile says which
        by_pillow = is_white_zero = False
    if by_pillow:
        with opened_image(source) as image:
            raw = _checked(_by_pillow(image, source), display_name(source))
        return raw._replace(values=_inverted(raw.values)) if is_white_zero else raw
    try:
        return _caught(source, _by_tifffile)
    except MissingCodec:
        with suppress(BrokenImage), opened_image(source) as image:
            if raw_mode(image).startswith("RGB") and image.tag_v2.get(PLANES, 1) == 1:  # type: ignore[attr-defined]
                return _checked(_by_pillow(image, source), display_name(source))
        raise


class MissingCodec(BrokenImage):
    """A compression that tifffile decodes with imagecodecs only."""


def _has_all(image: Image.Image) -> bool:
    """Whether Pillow decodes all numbers of a TIFF, once opened: what is plain, and one band of a type that it has."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    kind = tags.get(SAMPLES, 1), tags.get(BITS, (1,))[0], tags.get(SAMPLE_FORMAT, (1,))[0]
    return is_plain(image) or kind in ((1, 12, 1), (1, 16, 1), (1, 16, 2), (1, 32, 2), (1, 32, 3))


def _by_tifffile(file: io.BufferedIOBase, path: Path) -> RawImage:
    with tifffile.TiffFile(cast(IO[bytes], file), name=path.name) as tiff:
        page = tiff.pages.first
        if page.dtype is None:
            raise BrokenImage(path, f"holds numbers of {page.bitspersample} bits, which is no image")
        _check_size(path, page.imagewidth, page.imagelength, page.samplesperpixel, page.dtype)
        try:
            pixels = page.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            codec = getattr(page.compression, "name", page.compression)
            raise MissingCodec(path, f"its compression ({codec}) needs imagecodecs: pip install 'beitkit[tiff]'") from error
        order = page.axes  # such as YXS, SYX, YX
        if "S" not in order:
            pixels, order = pixels[None], f"S{order}"
        if pixels.ndim != 3:
            raise BrokenImage(path, f"holds numbers of shape {pixels.shape}, which is no image")
        values = np.ascontiguousarray(np.moveaxis(pixels, order.index("S"), 0))
        if page.photometric == WHITE_IS_ZERO:
            values = _inverted(values)
        turn = UPRIGHT.get(page.tags.valueof(ORIENTATION, 1))
        values = values if turn is None else np.ascontiguousarray(TURNS[turn](values))
        extra = tuple(page.extrasamples)
        return RawImage(values, has_alpha=len(extra) == 1 and extra[0] in ALPHA and len(values) in (2, 4))


def _inverted(values: np.ndarray) -> np.ndarray:
    """Numbers of which the lowest is white, the other way round; floats, which have no highest, by their signs."""
    return -values if values.dtype.kind == "f" else np.iinfo(values.dtype).max - values


def _array(file: io.BufferedIOBase, path: Path) -> RawImage:
    """A NumPy array (h, w), (h, w, c) or (c, h, w), of an .npy file or alone in an .npz; c is the shortest side."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(names) != 1:
                arrays = ", ".join(name.removesuffix(".npy") for name in names[:5])
                raise BrokenImage(path, f"holds {len(names)} arrays ({arrays}), not one image")
            with archive.open(names[0]) as member:
                _check_header(member, path)
            with archive.open(names[0]) as member:
                loaded = np.lib.format.read_array(member, allow_pickle=False)
    else:
        file.seek(0)
        _check_header(file, path)
        file.seek(0)
        loaded = np.lib.format.read_array(file, allow_pickle=False)
    values = channels_first(loaded)
    if values is None:
        raise BrokenImage(path, f"an array of shape {loaded.shape} is no image; expected (h, w), (h, w, c) or (c, h, w)")
    return RawImage(values)


def _check_header(stream: IO[bytes] | io.BufferedIOBase, path: Path) -> None:
    """Raise for an array that is larger than any image, by its header: a small file may unpack to a large one."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(stream)
    if (reason := why_too_much_memory(math.prod(shape) * max(kind.itemsize, 4))) is not None:
        raise BrokenImage(path, f"its numbers, of shape {shape}, {reason}")


def channels_first(array: np.ndarray, channels: int | None = None, *, first: bool = False) -> np.ndarray | None:
    """An array (h, w), (h, w, c) or (c, h, w) as (c, h, w); None for another.

    The axis of channels is the one that has `channels`, else the shorter of the first and the last, else the first if `first`.
    """
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        return None
    head, tail = array.shape[0], array.shape[2]
    if min(head, tail) > MOST_CHANNELS:
        return None
    is_first = head == channels if (head == channels) != (tail == channels) else head < tail or (head == tail and first)
    return np.ascontiguousarray(array if is_first else array.transpose(2, 0, 1))


def _joined(bands: Bands) -> RawImage:
    """Several files of one band each as one image."""
    parts = []
    for path in bands.paths:
        raw = read_raw(path)
        if len(raw.values) != 1:
            raise BrokenImage(path, f"has {len(raw.values)} channels; a file that is one band of an image has one")
        height, width = raw.values.shape[1:]
        _check_size(bands.path, width, height, len(bands.paths), raw.values.dtype)
        if parts and raw.values.shape != parts[0].shape:
            wanted_height, wanted_width = parts[0].shape[1:]
            raise BrokenImage(path, f"is {width}x{height} pixels, but {bands.paths[0].name} {wanted_width}x{wanted_height}")
        parts.append(raw.values)
    return _checked(RawImage(np.concatenate(parts)), bands.path)


def _dicom(file: io.BufferedIOBase, path: Path) -> RawImage:
    """A DICOM image: rescaled by its slope and intercept, MONOCHROME1 turned round, with its window if it has one."""
    try:
        import pydicom
    except ImportError:
        raise BrokenImage(path, "DICOM needs pydicom: pip install 'beitkit[dicom]'") from None
    dataset = pydicom.dcmread(file)
    frames = int(dataset.get("NumberOfFrames", None) or 1)
    if frames != 1:
        raise BrokenImage(path, f"has {frames} frames; save each as an image")
    height, width, samples = (int(dataset.get(name, 1)) for name in ("Rows", "Columns", "SamplesPerPixel"))
    _check_size(path, width, height, samples, np.dtype(np.float32))
    pixels = dataset.pixel_array
    if dataset.get("SamplesPerPixel", 1) != 1:
        return RawImage(_channels_first(pixels))
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    values = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    window = None
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        center, width = (float(np.ravel(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        window = center - width / 2, center + width / 2
    if dataset.PhotometricInterpretation == "MONOCHROME1":  # the lowest is white
        bits, is_signed = int(dataset.BitsStored), dataset.PixelRepresentation == 1
        ends = sum((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)) * slope + 2 * intercept
        values = np.float32(ends) - values
        window = None if window is None else (ends - window[1], ends - window[0])
    return RawImage(values[None], window=window)
