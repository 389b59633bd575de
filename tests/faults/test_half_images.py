"""Images of which a part is missing, and images that are small on the disk and large in memory."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from beitkit.configs.data import ReadLimit
from beitkit.data.decoding.decode import (
    BrokenImage,
    Encoded,
    StoredImage,
    format_when_whole,
    image_to_crop,
    opaque,
    open_image,
)
from beitkit.data.decoding.limit import reading_up_to
from beitkit.data.decoding.raw import read_raw
from beitkit.data.decoding.reading import readable_image

ORIENTATION = 0x0112
HOLE = 64  # bytes


def photo(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Spots of color, and some noise."""
    random = np.random.default_rng(height * width)
    spots = random.integers(0, 256, (max(2, height // 7), max(2, width // 7), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def scan_of(data: bytes) -> int:
    """Where the pixels of a JPEG begin."""
    return data.index(b"\xff\xda") + 14


JPEGS: dict[str, Callable[[], bytes]] = {
    "color": lambda: encoded(photo(90, 120)),
    "progressive": lambda: encoded(photo(90, 120), progressive=True),
    "gray": lambda: encoded(photo(90, 120, "L")),
    "CMYK": lambda: encoded(photo(90, 120, "CMYK")),
    "turned": lambda: encoded(photo(90, 120), exif=turned(6)),
    "turned and gray": lambda: encoded(photo(90, 120, "L"), exif=turned(3)),
    "tiny": lambda: encoded(photo(12, 15), quality=95, subsampling=0),
    "two images": lambda: encoded(photo(90, 120), "MPO", save_all=True, append_images=[photo(48, 64)]),
    "extended with restarts": lambda: encoded(photo(90, 120), restart_marker_blocks=5),
}
WAYS: dict[str, Callable[[Encoded], object]] = {
    "training view": lambda source: stored(source).pixels(2),
    "training view with jitter": lambda source: stored(source).decoded(2),
    "evaluation": lambda source: open_image(source, 3),
    "gray network": lambda source: open_image(source, 1),
    "network with a value range": lambda source: readable_image(source, 3, ((0.0, 255.0),) * 3),
    "its own numbers": read_raw,
    "pack": format_when_whole,
}


def stored(source: Encoded) -> StoredImage:
    image = image_to_crop(source, 3)
    assert isinstance(image, StoredImage)
    return image


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_was_cut_and_closed_is_broken(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**20)
    data = JPEGS[kind]()
    WAYS[way](Encoded(Path("whole.jpg"), data))
    length = data.index(b"\xff\xd9\xff\xd8") if kind == "two images" else len(data)
    for share in (0.3, 0.5, 0.9) if kind != "tiny" else (0.3, 0.5):
        cut = data[: scan_of(data) + int((length - scan_of(data)) * share)] + b"\xff\xd9"
        # What it is about: Pillow alone shows gray in place of what is missing, and says nothing.
        Image.open(io.BytesIO(cut)).load()
        with pytest.raises(BrokenImage, match="premature end|bad Huffman code|instead of RST|extraneous bytes"):
            WAYS[way](Encoded(Path("half.jpg"), cut))


def test_most_holes_are_seen_and_whole_images_are_never_blamed() -> None:
    random, seen = np.random.default_rng(0), 0
    for number in range(40):
        data = encoded(photo(60 + number, 90 + 2 * number), quality=70 + number % 25)
        source = Encoded(Path("a.jpg"), data)
        assert open_image(source, 3).size == (90 + 2 * number, 60 + number)
        place = int(random.integers(scan_of(data), len(data) - HOLE - 2))
        try:
            open_image(Encoded(Path("hole.jpg"), data[:place] + bytes(HOLE) + data[place + HOLE :]), 3)
        except BrokenImage:
            seen += 1
    assert seen > 15  # of 40; libjpeg finds its way back in the others


@pytest.mark.parametrize(
    "extra",
    [
        lambda data: data + bytes(99),
        lambda data: data[:-2] + b"\0\0" + data[-2:],  # extraneous bytes before the end marker, as some cameras write
        lambda data: data[:2] + b"\xff\xe0\x00\x10JFIF\0\x09\x02\0\0\x01\0\x01\0\0" + data[20:],  # an unknown JFIF
    ],
)
def test_what_harms_no_pixel_is_no_damage(extra: Callable[[bytes], bytes]) -> None:
    data = encoded(photo(90, 120))
    whole = np.asarray(open_image(Encoded(Path("a.jpg"), data), 3))
    assert np.array_equal(np.asarray(open_image(Encoded(Path("a.jpg"), extra(data)), 3)), whole)


def with_transparency(mode: str) -> Image.Image:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (37, 53, {"LA": 2, "RGBA": 4}.get(mode, 4)), dtype=np.uint8)
    if mode in ("LA", "RGBA"):
        return Image.fromarray(pixels, mode)
    image = Image.fromarray(pixels[..., :3]).convert("P" if mode == "P" else mode)
    image.info["transparency"] = 3 if mode == "P" else (3 if mode == "L" else (1, 2, 3))
    return image


@pytest.mark.parametrize("wanted", ["RGB", "L"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "CMYK", "YCbCr", "1"])
def test_strips_give_the_pixels_of_the_whole(mode: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(37, 53).convert(mode) if mode in ("CMYK", "YCbCr", "1") else with_transparency(mode)
    expected = image
    if image.has_transparency_data:
        expected = Image.new("RGBA", image.size, "white")
        expected.alpha_composite(image.convert("RGBA"))
    monkeypatch.setattr("beitkit.data.decoding.decode.STRIP", 53 * 5)
    assert np.array_equal(np.asarray(opaque(image, wanted)), np.asarray(expected.convert(wanted)))


PEAKS = """
    import sys
    from pathlib import Path
    from PIL import Image
    from beitkit.data.decoding.decode import image_to_crop
    from beitkit.system import peak_resident_bytes, reset_peak_memory
    for path in map(Path, sys.argv[1:]):
        reset_peak_memory()
        before = peak_resident_bytes()
        image = image_to_crop(path, 3)
        print((peak_resident_bytes() - before) / (image.width * image.height))
        del image
"""
MOST = {"RGB": 5, "RGBA": 10, "P": 6}
"""Bytes a pixel at the peak; before, it was 8 for RGB and 20 with transparency."""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_decoding_takes_little_more_than_what_is_shown(tmp_path: Path) -> None:
    paths = [tmp_path / "first.png", *(tmp_path / f"{mode}.png" for mode in MOST)]
    for path, mode, side in zip(paths, ("RGB", *MOST), (64, 3000, 3000, 3000), strict=True):
        Image.new(mode, (side, side)).save(path)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PEAKS), *paths], capture_output=True, text=True, check=True)
    taken = [float(line) for line in done.stdout.splitlines()][1:]
    assert all(one < most for one, most in zip(taken, MOST.values(), strict=True)), taken


@pytest.mark.parametrize(
    ("save", "megabytes"),
    [
        (lambda path: Image.new("RGB", (1000, 1000)).save(path, "PNG"), 4),
        (lambda path: Image.new("RGBA", (1000, 1000)).save(path, "PNG"), 8),
        (lambda path: Image.new("L", (1000, 1000)).save(path, "PNG"), 5),
        (lambda path: Image.new("RGB", (1000, 1000)).save(path, "JPEG"), 4),
        (lambda path: Image.new("RGB", (1000, 1000)).save(path, "JPEG", progressive=True, subsampling=0), 10),
        (lambda path: Image.new("RGB", (1000, 1000)).save(path, "WEBP"), 18),
    ],
)
def test_the_limit_counts_what_decoding_takes(save: Callable[[Path], None], megabytes: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path)
    with reading_up_to(ReadLimit(max_memory=float(megabytes))):
        assert open_image(path, 3).size == (1000, 1000)
    with reading_up_to(ReadLimit(max_memory=megabytes - 0.5)), pytest.raises(BrokenImage) as error:
        open_image(path, 3)
    assert error.value.reason == (
        f"1000x1000 pixels take {megabytes} MB decoded, more than {megabytes - 0.5:g}; `read.max_memory={megabytes}` lets it in "
        "(in every process that reads)"
    )


def test_without_a_number_the_limit_follows_the_pixels() -> None:
    limits = ReadLimit(), ReadLimit(max_pixels=120.0), ReadLimit(max_memory=50.0)
    assert [limit.decoding_memory for limit in limits] == [400, 1440, 50]
