"""Mask files give back exactly the values that were stored, whatever the kind of image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.scenes.masks import packed, read_mask, unpacked

VALUES = np.array([[0, 1, 2], [3, 2, 1]])


def gray_png(path: Path, values: np.ndarray, bits: int) -> Path:
    """A gray PNG of 1, 2 or 4 bits, written by hand, as optimizing programs write index masks."""
    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize("bits", [2, 4])
def test_values_of_few_bits_are_not_spread_over_eight(tmp_path: Path, bits: int) -> None:
    assert np.array_equal(read_mask(gray_png(tmp_path / "a.png", VALUES, bits)).pixels, VALUES)


def test_one_bit_gives_zero_and_one(tmp_path: Path) -> None:
    assert np.array_equal(read_mask(gray_png(tmp_path / "a.png", VALUES % 2, 1)).pixels, VALUES % 2)


@pytest.mark.parametrize(("kind", "most"), [(np.uint8, 255), (np.uint16, 40000)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_index_masks_of_eight_and_sixteen_bits(tmp_path: Path, kind: type, most: int, suffix: str) -> None:
    values = np.append(VALUES, [[most, 0, most]], axis=0).astype(kind)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    mask = read_mask(tmp_path / f"a{suffix}")
    assert np.array_equal(mask.pixels, values)
    assert mask.occurring().tolist() == [0, 1, 2, 3, most]
    assert not mask.is_color


def test_palette_masks_give_indices_and_colors(tmp_path: Path) -> None:
    image = Image.fromarray(VALUES.astype(np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    image.putdata(VALUES.ravel().tolist())
    image.save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png")
    assert np.array_equal(mask.pixels, VALUES)
    assert mask.palette[:4] == ((10, 20, 30), (40, 50, 60), (70, 80, 90), (1, 2, 3))


def test_color_masks_give_colors_and_an_opaque_alpha_channel_is_dropped(tmp_path: Path) -> None:
    colors = np.array([[[1, 2, 3], [200, 100, 0]]], dtype=np.uint8)
    image = Image.fromarray(colors)
    for name, saved in (("a.png", image), ("b.png", image.convert("RGBA"))):
        saved.save(tmp_path / name)
        mask = read_mask(tmp_path / name)
        assert mask.is_color
        assert unpacked(mask.occurring()) == [(1, 2, 3), (200, 100, 0)]
    assert packed(colors).tolist() == [[0x010203, 0xC86400]]


def test_what_does_not_keep_values_is_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("nothing")
    for name, reason in (("a.jpg", "JPEG changes pixel values"), ("b.png", "transparent"), ("c.png", "not an image")):
        with pytest.raises(BrokenImage, match=reason) as caught:
            read_mask(tmp_path / name)
        assert caught.value.path == tmp_path / name
