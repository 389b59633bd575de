"""Decode a file to an upright image of 1 or 3 channels; raises `BrokenImage` with the reason if it cannot.

All images are decoded here. The result is an 8-bit Pillow image in mode "RGB" (3 channels) or "L" (1 channel). An image above
the pixel limit is rejected by its header, before memory is allocated.

EXIF orientation is applied; the first frame of an animation or document is used; 16-bit and float values are scaled to 8 bits,
not clipped; transparent pixels become white. (The official code drops the alpha channel and so shows the color under transparent
pixels; black drawings on a transparent ground, the most common kind, would become all black.)
"""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.data.decoding.formats import FORMATS, HAS_HEIF, HEIF_EXTRA
from beitkit.data.decoding.jpeg import check_jpeg, decode_jpeg, is_decodable
from beitkit.data.decoding.limit import LARGEST_FILE, allowed, why_too_large
from beitkit.errors import UserError
from beitkit.files import opened_regular

Image.init()
if HAS_HEIF:
    importlib.import_module("pillow_heif").register_heif_opener()
READABLE = tuple(name for name in FORMATS if name in Image.OPEN)  # older and leaner builds of Pillow lack some
# Tags of TIFF 6.0.
BITS, PHOTOMETRIC, SAMPLES, PLANES, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339

# EXIF orientation -> what puts the image upright (EXIF 2.3, tag 0x0112).
UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
JPEGS = ("JPEG", "MPO")
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Of a pixel in Pillow's memory, by mode; the others take 4."""
_BYTES_BESIDE = {"WEBP": 14, "JPEG2000": 16, "AVIF": 6, "HEIF": 4, "TIFF": 4, "DDS": 3, "FTEX": 3, "BLP": 3, "ICNS": 16}
"""What decoders take beside Pillow's own pixels, in bytes a pixel; rows of most others pass through a small buffer."""
STRIP = 2**18
"""Pixels that are converted together: what lies between the decoded image and the shown one is never whole."""
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
SIDEWAYS = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
"""The turns that exchange height and width."""
Pixels = NDArray[np.uint8]

# What libtiff and Pillow's TIFF reader print besides raising an exception says nothing more.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
with suppress(OSError, AttributeError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


class BrokenImage(Exception):  # noqa: N818 - it names an image, as the callers do
    """A file that cannot be read as an image: `path`, and `reason` in a few words."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Encoded(NamedTuple):
    """An image's file in memory, as it is read from an archive."""

    path: Path
    """What it is called in messages."""
    content: bytes


class Bands(NamedTuple):
    """An image that lies in several files, a channel in each."""

    path: Path
    """What it is called in messages."""
    paths: tuple[Path, ...]


def image_mode(channels: int) -> str:
    """Pillow's mode of images with this many channels."""
    if channels not in (1, 3):
        raise UserError(f"images are read with 1 (gray) or 3 (RGB) channels, not with {channels}; set channels to 1 or 3")
    return "L" if channels == 1 else "RGB"


@dataclass(frozen=True)
class StoredImage:
    """A JPEG whose header has been read, but whose pixels have not: they are decoded as finely as is needed."""

    source: Path | Encoded
    mode: str
    """"RGB" or "L", as it will be decoded."""
    height: int
    """Of the upright image at full size, as `width`."""
    width: int
    turn: Image.Transpose | None = None
    """What EXIF says puts it upright."""
    kept: dict[int, Image.Image | Pixels] = field(default_factory=dict, repr=False, compare=False)
    """What was decoded, by its reduction: several views of an image are shown one after the other."""

    def decoded(self, reduction: int = 1) -> Image.Image:
        """The whole upright image, at 1/2, 1/4 or 1/8 of its size where `reduction` is at least 2, 4 or 8; not to be changed.

        Raises:
            BrokenImage: the pixels are damaged or cut short.
        """
        # The copy takes as long as simplejpeg is faster, and Pillow alone would have to be checked on.
        whole = self.pixels(reduction)
        if not isinstance(whole, Image.Image):
            whole = self.kept[possible_reduction(reduction)] = Image.fromarray(whole)
        return whole

    def pixels(self, reduction: int = 1) -> Image.Image | Pixels:
        """The same, but an array (h, w, 3) or (h, w) where simplejpeg makes one; an image would cost a copy more than it saves.

        Raises:
            BrokenImage: the pixels are damaged or cut short.
        """
        reduction = possible_reduction(reduction)
        if reduction not in self.kept:
            with opened_image(self.source) as image:
                pixels = self._by_simplejpeg(image, reduction)
                self.kept[reduction] = self._by_pillow(image, reduction) if pixels is None else pixels
        return self.kept[reduction]

    def _by_pillow(self, image: Image.Image, reduction: int) -> Image.Image:
        if reduction > 1:
            size = max(1, image.width // reduction), max(1, image.height // reduction)
            image.draft(None, size)  # type: ignore[arg-type] - None keeps the colors as they are stored
        if not self.kept:  # else it was decoded to its end before
            check_whole(image)
        image.load()
        return upright(opaque(image, self.mode), image)

    def _by_simplejpeg(self, image: Image.Image, reduction: int) -> Image.Image | Pixels | None:
        """The pixels of a JPEG that is stored as it is wanted, or turned."""
        size = image.height, image.width
        if not is_decodable(image.mode, size) or image.mode != self.mode:
            return None
        pixels = decode_jpeg(_content(image), image.mode, size, reduction)
        return pixels if pixels is None or self.turn is None else Image.fromarray(pixels).transpose(self.turn)


def check_whole(image: Image.Image) -> None:
    """Raise a `ValueError` for a JPEG, opened but not decoded, of which a part is missing; Pillow would show gray there."""
    if image.format in JPEGS:
        check_jpeg(_content(image), image.mode)


def _content(image: Image.Image) -> bytes:
    """The file of an image that was opened; Pillow finds its own place in it again."""
    file = image.fp  # type: ignore[attr-defined] - an image that was opened has its file
    file.seek(0)
    return file.read(LARGEST_FILE)


def bytes_per_pixel(image: Image.Image, mode: str) -> int | float:
    """What it takes to decode an image that was opened, and to show it in a mode of Pillow's; measured (docs/robustness.md)."""
    decoded = _BYTES.get(image.mode, 4)
    shown = 0 if image.mode == mode and "transparency" not in image.info else _BYTES.get(mode, 4)
    if "exif" in image.info and turn_of(image) is not None:  # without it, a PNG would be decoded to look for it at its end
        shown += _BYTES.get(mode, 4)
    if image.format in JPEGS and image.info.get("progressive"):
        layers = image.layer  # type: ignore[attr-defined] - of each component: id, samples across, samples down, table
        whole = max(across for _, across, _, _ in layers) * max(down for _, _, down, _ in layers)
        return decoded + shown + 2 * sum(across * down for _, across, down, _ in layers) / whole  # all coefficients are kept
    return decoded + shown + _BYTES_BESIDE.get(image.format or "", 0)


def possible_reduction(reduction: int | float) -> int:
    """The largest reduction that libjpeg has and that is asked for."""
    return next((possible for possible in (8, 4, 2) if reduction >= possible), 1)


def image_to_crop(source: Path | Encoded, channels: int, *, smallest: Pair = (1, 1)) -> Image.Image | StoredImage:
    """A JPEG not yet decoded; any other image decoded, as it cannot be decoded in part. Else as `open_image`."""
    mode = image_mode(channels)
    path = display_name(source)
    with opened_image(source) as image:
        width, height = image.size
        reason = why_too_large(width, height, bytes_per_pixel(image, mode)) or beyond_8_bits(image)
        if reason is not None:
            raise BrokenImage(path, reason)
        if min(image.size) < min(smallest) or max(image.size) < max(smallest):
            raise BrokenImage(path, f"{width}x{height} pixels, smaller than a patch of {smallest[1]}x{smallest[0]}")
        if image.format not in JPEGS:
            image.load()
            return upright(opaque(image, mode), image)
        turn = turn_of(image)
        return StoredImage(source, mode, *((width, height) if turn in SIDEWAYS else (height, width)), turn)


def open_image(path: Path | Encoded, channels: int, *, smallest: Pair = (1, 1)) -> Image.Image:
    """The image of a file, upright, in mode "RGB" for 3 channels and "L" for 1.

    Raises:
        BrokenImage: the file is not an image, damaged, cut short, has more pixels than allowed (`limit`), or is lower or
            narrower than `smallest` (height, width).
        UserError: `channels` is neither 1 nor 3.
    """
    image = image_to_crop(path, channels, smallest=smallest)
    return image.decoded() if isinstance(image, StoredImage) else image


def format_when_whole(source: Path | Encoded) -> str:
    """Pillow's name of the format of an image that can be decoded to its end; a JPEG is decoded at 1/8 to find out.

    Raises:
        BrokenImage: as `open_image`.
    """
    stored = image_to_crop(source, channels=3)
    if isinstance(stored, StoredImage):
        stored.decoded(reduction=8)
    with opened_image(source) as image:
        assert image.format is not None
        return image.format if image.format in FORMATS else "JPEG"  # MPO: several JPEGs, one after the other


def stored_size(source: Path | Encoded) -> Pair:
    """Width and height of an image as it is stored, without decoding any of it.

    Raises:
        BrokenImage: the header cannot be read.
    """
    with opened_image(source) as image:
        return image.size


class Header(NamedTuple):
    """What an image's file says before its pixels are decoded."""

    stored: Pair
    """(width, height) of the pixels as stored."""
    turn: Image.Transpose | None
    """What EXIF says puts them upright."""

    @property
    def upright(self) -> Pair:
        """(width, height) after the turn."""
        width, height = self.stored
        return (height, width) if self.turn in SIDEWAYS else (width, height)


def image_header(source: Path | Encoded) -> Header:
    """Size and orientation of an image.

    Raises:
        BrokenImage: the header cannot be read.
    """
    with opened_image(source) as image:
        # A PNG is decoded, as what turns it may stand at its end.
        if (reason := why_too_large(*image.size, bytes_per_pixel(image, image.mode))) is not None:
            raise BrokenImage(display_name(source), reason)
        return Header(image.size, turn_of(image))


def raw_mode(image: Image.Image) -> str:
    """How Pillow calls the stored pixels of an image that was opened but not decoded, such as `RGB;16B`; empty if it does not."""
    args = _decoder_arguments(image)
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _decoder_arguments(image: Image.Image) -> object:
    tiles = getattr(image, "tile", None)
    return tiles[0].args if tiles else None


def is_plain(image: Image.Image) -> bool:
    """Whether an image that was opened has what gray, RGB and transparency of 8 bits can hold, as Pillow decodes it."""
    return beyond_8_bits(image) is None


def beyond_8_bits(image: Image.Image) -> str | None:
    """Why an image that was opened is more than 8 bits of gray or RGB, if it is; TIFF by its tags, before it is decoded."""
    wanted = "say which values are black and white (`value_range`)"
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bands, photometric = tags.get(SAMPLES, 1), tags.get(PHOTOMETRIC, 1)
        colors = {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)  # RGB, CMYK, YCbCr, L*a*b*; else gray or a palette
        if bands > colors and not (bands == colors + 1 and tuple(tags.get(EXTRA_SAMPLES, ())) in ((1,), (2,))):
            return f"has {bands} channels, and no tag that makes the last one transparency; train with `channels` {bands}"
        bits = max(tags.get(BITS, (1,)))
        if bits > 8:
            return f"has {bits} bits a channel, and nothing says what they mean; {wanted}"
        if set(tags.get(SAMPLE_FORMAT, ())) - {1, 4}:  # whole numbers without a sign, or nothing said
            return f"has numbers with a sign, and nothing says what they mean; {wanted}"
    if image.mode.startswith("I") or image.mode == "F" or ";16" in raw_mode(image) or _has_wide_maximum(image):
        bits = "floats" if image.mode == "F" else "more than 8 bits"
        return f"has {bits} a channel, and nothing says what they mean; {wanted}"
    return None


def _has_wide_maximum(image: Image.Image) -> bool:
    """Whether a PPM file has a white above 255."""
    args = _decoder_arguments(image)
    return image.format == "PPM" and isinstance(args, tuple) and len(args) > 1 and isinstance(args[1], int) and args[1] > 255


@contextmanager
def opened_image(source: Path | Encoded) -> Iterator[Image.Image]:
    """A file as Pillow opens it; whatever goes wrong with it inside the block becomes a `BrokenImage`."""
    path = display_name(source)
    try:
        with warnings.catch_warnings(), opened_file(source) as file:
            # Pillow warns about odd metadata and about size; the first does not matter, the second is our limit's business.
            warnings.simplefilter("ignore")
            with Image.open(cast(IO[bytes], file), formats=READABLE) as image:
                yield image
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage(path, f"more than {allowed():g} million pixels; `read.max_pixels` lets larger ones in") from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(path, _unidentified(source)) from error
    except OSError as error:
        raise BrokenImage(path, error.strerror or one_line(error)) from error
    except Exception as error:  # decoders raise nearly every type there is on damaged bytes
        raise BrokenImage(path, one_line(error)) from error


def opened_file(source: Path | Encoded) -> io.BufferedIOBase:
    """The bytes of an image's file.

    Raises:
        OSError: it cannot be opened, or is no regular file, or larger than any image.
    """
    return opened_regular(source, LARGEST_FILE) if isinstance(source, Path) else io.BytesIO(source.content)


def _unidentified(source: Path | Encoded) -> str:
    """Why Pillow cannot open a file, by its first bytes: the box `ftyp` names what phones write (ISO 14496-12, 4.3)."""
    with opened_file(source) as file:
        start = file.read(132)
    if start.startswith((b"\x93NUMPY", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) or start[128:] == b"DICM":
        return "is no 8-bit gray or RGB image; say which values are black and white (`value_range`), or the number of `channels`"
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and not HAS_HEIF:
        return f"a HEIC image, which {HEIF_EXTRA} reads"
    if start[4:8] == b"ftyp" and start[8:12] in AVIF_BRANDS and "AVIF" not in READABLE:
        return "an AVIF image, which this build of Pillow does not read; install a newer one"
    return "not an image, or damaged at its beginning"


def display_name(source: Path | Encoded | Bands) -> Path:
    """What an image is called in messages."""
    return source if isinstance(source, Path) else source.path


def to_tensor(image: Image.Image) -> UInt8[Tensor, "c h w"]:
    """The pixels of an image in mode "RGB" or "L"."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def upright(image: Image.Image, origin: Image.Image) -> Image.Image:
    """The image turned as the EXIF orientation of the one that it was made from says."""
    turn = turn_of(origin)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What EXIF says puts an image upright."""
    return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))


def opaque(image: Image.Image, mode: str) -> Image.Image:
    """An 8-bit image in an opaque mode, "RGB" or "L".

    Raises:
        ValueError: more than 8 bits.
    """
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError("more than 8 bits a channel, of which nothing says what they mean")
    if image.mode == mode and "transparency" not in image.info:
        # The file closes, the pixels stay; but those that are mapped from it.
        return image.copy() if image.readonly else image._new(image.im)
    shown = Image.new(mode, image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.has_transparency_data:
            with_alpha = strip.convert("RGBA")
            strip = Image.new("RGBA", strip.size, "white")
            strip.alpha_composite(with_alpha)
        shown.paste(strip.convert(mode), (0, top))
    return shown


def one_line(error: Exception) -> str:
    """The message of an exception, on one line of at most 200 characters; of the system's errors the words alone."""
    text = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
    return text[:200] or type(error).__name__
