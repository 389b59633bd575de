"""Every kind of image becomes upright 8-bit pixels; everything else becomes one exception with a reason."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from beitkit.configs.data import ReadLimit
from beitkit.data.decoding.decode import (
    BrokenImage,
    Encoded,
    format_when_whole,
    image_to_crop,
    open_image,
    stored_size,
    to_tensor,
)
from beitkit.data.decoding.formats import HAS_HEIF
from beitkit.data.decoding.limit import reading_up_to
from beitkit.data.scenes.masks import read_mask
from beitkit.errors import UserError


def gradient(height: int = 12, width: int = 20) -> Image.Image:
    row = np.linspace(0, 255, width).astype(np.uint8)
    column = np.linspace(0, 255, height).astype(np.uint8)
    red, green = np.broadcast_to(row, (height, width)), np.broadcast_to(column[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 99)], axis=2))


LOSSLESS = ["png", "bmp", "ppm", "tif", "tga", "webp", "qoi", "sgi", "pcx", "dds", "jp2", "dib"]


@pytest.mark.parametrize("ending", LOSSLESS)
def test_lossless_formats_give_the_pixels(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    gradient().save(path, lossless=True)  # which only WebP heeds
    assert np.array_equal(np.array(open_image(path, 3)), np.array(gradient()))


@pytest.mark.parametrize("ending", ["jpg", "avif", "gif", "ico", "icns", "mpo"])
def test_other_formats_open(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    gradient(32, 32).save(path)
    image = open_image(path, 3)
    assert image.mode == "RGB"
    assert np.abs(np.array(image.resize((32, 32))).astype(int) - np.array(gradient(32, 32))).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    gradient().save(path, exif=exif)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.array(open_image(path, 3)), np.array(upright))
    assert (upright.size == (20, 12)) == (orientation < 5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_become_gray_or_rgb(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / "a.tif"
    gradient().convert(mode).save(path)
    image = open_image(path, channels)
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    assert to_tensor(image).shape == (channels, image.height, image.width)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_are_not_made_8_in_silence(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    for channels in (1, 3):
        with pytest.raises(BrokenImage, match="bits a channel, and nothing says what they mean"):
            open_image(tmp_path / f"a.{ending}", channels)


@pytest.mark.parametrize("value", [1.0, 700.0, float("nan"), -0.1])
def test_floats_are_not_made_8_bits_in_silence(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.array([[0.0, value]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImage, match="nothing says what they mean"):
        open_image(tmp_path / "a.tif", 3)


def test_what_is_transparent_shows_white(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [200, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = [[[255, 255, 255], [0, 0, 0], [244, 204, 204]]]  # 0.2 * color + 0.8 * 255
    assert np.array(open_image(tmp_path / "a.png", 3)).tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "b.png", transparency=0)
    assert np.array(open_image(tmp_path / "b.png", 3)).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    gray = Image.fromarray(np.array([[0, 7]], dtype=np.uint8))
    gray.save(tmp_path / "c.png", transparency=0)
    assert np.array(open_image(tmp_path / "c.png", 1)).tolist() == [[255, 7]]


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif", "avif"])
def test_first_frame_of_an_animation(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    red, green, blue = np.array(open_image(path, 3)).reshape(-1, 3).mean(0)
    assert red > 240
    assert max(green, blue) < 15


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 900)
        + b"IDAT"
    )


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif", "bmp", "avif", "jp2", "qoi", "tga"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_cut_files_are_broken(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BrokenImage) as caught:
        open_image(path, 3)
    assert caught.value.path == path
    assert caught.value.reason
    assert "\n" not in str(caught.value)


HOSTILE: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda path: None, "No such file"),
    ("empty", lambda path: path.write_bytes(b""), "not an image"),
    ("html", lambda path: path.write_text("<html><body>404</body></html>"), "not an image"),
    ("svg", lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image"),
    ("postscript", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
    ("pipe", os.mkfifo, "not a regular file"),
    ("folder", lambda path: path.mkdir(), "Is a directory"),
    ("device", lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ("large", lambda path: path.write_bytes(png_header(9000, 8000) + bytes(64)), "9000x8000 pixels, more than 64 million"),
    ("larger", lambda path: path.write_bytes(png_header(12000, 12000)), "12000x12000 pixels"),
    ("bomb", lambda path: path.write_bytes(png_header(60000, 60000)), "more than 64 million pixels"),
    ("garbage", lambda path: path.write_bytes(png_header(10, 10) + bytes(range(256)) * 9), "."),
]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_files_are_broken_images(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "a.jpg"
    make(path)
    with pytest.raises(BrokenImage, match=message):
        open_image(path, 3)


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    gradient().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(path, 3).size == (20, 12)


@pytest.mark.parametrize("channels", [0, 2, 4, 13])
def test_other_channels_are_refused(tmp_path: Path, channels: int) -> None:
    with pytest.raises(UserError, match=f"not with {channels}"):
        open_image(tmp_path / "a.png", channels)


def test_to_tensor_keeps_every_pixel_in_place() -> None:
    image = gradient(3, 4)
    pixels = to_tensor(image)
    assert (pixels.dtype, pixels.shape, pixels.is_contiguous()) == (torch.uint8, (3, 3, 4), True)
    for x, y in ((0, 0), (3, 1), (1, 2)):
        assert tuple(pixels[:, y, x].tolist()) == image.getpixel((x, y))


def test_an_image_smaller_than_a_patch_is_of_no_use(tmp_path: Path) -> None:
    Image.new("RGB", (30, 10)).save(tmp_path / "low.png")
    assert open_image(tmp_path / "low.png", 3, smallest=(10, 10)).size == (30, 10)
    with pytest.raises(BrokenImage, match="30x10 pixels, smaller than a patch of 16x16"):
        open_image(tmp_path / "low.png", 3, smallest=(16, 16))


def test_the_limit_is_set_for_a_while_and_says_what_it_would_take(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (300, 200)).save(path)  # 0.06 million
    with reading_up_to(ReadLimit(max_pixels=0.05)):
        with pytest.raises(BrokenImage) as error:
            open_image(path, 3)
        assert error.value.reason == (
            "300x200 pixels, more than 0.05 million; `read.max_pixels=1` lets it in (0 MB decoded, in every process that reads)"
        )
        with pytest.raises(BrokenImage, match="more than 0.05 million"):
            read_mask(path)
        with reading_up_to(ReadLimit(max_pixels=0.06)):
            assert open_image(path, 3).size == (300, 200)
    assert open_image(path, 3).size == (300, 200)
    assert read_mask(path).pixels.shape == (200, 300)


@pytest.mark.parametrize(("side", "megabytes"), [(10_980, 362), (20_000, 1200)])  # a tile of Sentinel-2; beyond Pillow's limit
def test_larger_images_are_read_where_they_are_allowed(tmp_path: Path, side: int, megabytes: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(BrokenImage, match=f"{megabytes} MB decoded|more than 64 million pixels; `read.max_pixels` lets"):
        open_image(path, 3)
    with reading_up_to(ReadLimit(max_pixels=side * side / 1e6)):
        assert stored_size(path) == (side, side)
        with pytest.raises(BrokenImage) as error:  # the file has nothing but a header
            open_image(path, 3)
    assert "million" not in error.value.reason


def test_images_of_phones(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (pip install 'beitkit[heic]')")
    assert HAS_HEIF
    path = tmp_path / "a.heic"
    gradient().save(path, quality=95)
    stored = heif.open_heif(path)
    expected = Image.frombytes(stored.mode, stored.size, stored.data, "raw", stored.mode, stored.stride)
    assert np.array_equal(np.asarray(open_image(path, 3)), np.asarray(expected))
    assert stored_size(path) == gradient().size
    assert format_when_whole(path) == "HEIF"


@pytest.mark.skipif(HAS_HEIF, reason="pillow-heif is installed")
@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_images_of_phones_name_what_reads_them(tmp_path: Path, brand: bytes) -> None:
    content = b"\0\0\0\x18ftyp" + brand + bytes(40)
    (tmp_path / "a.heic").write_bytes(content)
    for source in (tmp_path / "a.heic", Encoded(tmp_path / "a.heic", content)):
        with pytest.raises(BrokenImage, match=r"a HEIC image, which pip install 'beitkit\[heic\]' reads"):
            image_to_crop(source, 3)


@pytest.mark.skipif("AVIF" not in Image.OPEN, reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.avif", quality=100)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.avif", 3)), np.asarray(Image.open(tmp_path / "a.avif")))
