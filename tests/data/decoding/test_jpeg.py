"""Whether simplejpeg or Pillow decodes, pixels and refusals are the same; a JPEG of which a part is missing is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from beitkit.data.decoding import decode
from beitkit.data.decoding.decode import BrokenImage, StoredImage, image_to_crop, open_image
from beitkit.data.decoding.jpeg import decode_jpeg, is_decodable

REDUCTIONS = (1, 2, 4, 8)


def photo(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Large spots of color, and some noise."""
    random = np.random.default_rng(height * width)
    spots = random.integers(0, 256, (max(2, height // 7), max(2, width // 7), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(path: Path, channels: int) -> list[np.ndarray | None]:
    """The pixels at each reduction; None where the file is refused."""
    found: list[np.ndarray | None] = []
    for reduction in REDUCTIONS:
        try:
            stored = image_to_crop(path, channels)
            assert isinstance(stored, StoredImage)
            found.append(np.asarray(stored.pixels(reduction)))
        except BrokenImage:
            found.append(None)
    return found


def assert_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | None]:
    """That simplejpeg changes nothing; returns the pixels in color."""
    colored: list[np.ndarray | None] = []
    for channels in (3, 1):
        with_it = seen(path, channels)
        with monkeypatch.context() as patch:
            patch.setattr(decode, "is_decodable", lambda mode, size: False)
            without = seen(path, channels)
        for one, other in zip(with_it, without, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or np.array_equal(one, other)
        colored = colored or with_it
    return colored


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(96, 130), (61, 83), (17, 300), (9, 9), (375, 500)])
def test_pixels_are_those_of_pillow(mode: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**20)  # Pillow's encoder needs more for small noisy files
    for subsampling in (0, 1, 2):
        for quality, progressive in ((30, False), (95, False), (85, True)):
            data = encoded(photo(*size, mode), quality=quality, subsampling=subsampling, progressive=progressive)
            (tmp_path / "a.jpg").write_bytes(data)
            assert all(pixels is not None for pixels in assert_same(tmp_path / "a.jpg", monkeypatch))
            # Else Pillow would be compared with itself.
            assert is_decodable(mode, size) == (mode != "CMYK" and max(size) >= 16)
            assert not is_decodable(mode, size) or decode_jpeg(data, mode, size, 1) is not None


KINDS: dict[str, Callable[[], bytes]] = {
    "stored as RGB": lambda: encoded(photo(64, 48), keep_rgb=True),
    "restart markers": lambda: encoded(photo(64, 48), restart_marker_blocks=1),
    "two images": lambda: encoded(photo(64, 48), "MPO", save_all=True, append_images=[photo(48, 64)]),
    "zeros at the end": lambda: encoded(photo(64, 48)) + bytes(99),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(KINDS[kind]())
    assert all(pixels is not None for pixels in assert_same(tmp_path / "a.jpg", monkeypatch))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.jpg").write_bytes(encoded(photo(90, 60), exif=exif))
    pixels = assert_same(tmp_path / "a.jpg", monkeypatch)[0]
    assert pixels is not None
    assert pixels.shape == ((90, 60, 3) if orientation < 5 else (60, 90, 3))


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_files_are_refused_where_pillow_refuses(
    progressive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(photo(120, 90), quality=90, progressive=progressive)
    random = np.random.default_rng(0)
    files = [data[: int(len(data) * share)] for share in (0.02, 0.1, 0.4, 0.7, 0.95)]
    for place in random.integers(0, len(data) - 20, 60):
        files.append(data[:place] + random.bytes(20) + data[place + 20 :])
        files.append(data[:place] + bytes([data[place] ^ 1 << int(random.integers(8))]) + data[place + 1 :])
    refused = read = 0
    for number, content in enumerate(files):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content)
        try:
            is_jpeg = isinstance(image_to_crop(path, 3), StoredImage)
        except BrokenImage:  # by its header, which is Pillow's business alone
            continue
        if is_jpeg:
            whole = assert_same(path, monkeypatch)[0]
            refused, read = refused + (whole is None), read + (whole is not None)
    assert refused > 4  # Pillow reads most of the damaged ones
    assert read > 40


def test_an_image_that_is_opened_does_not_need_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(64, 48)))
    for is_tried in (is_decodable, lambda mode, size: False):
        monkeypatch.setattr(decode, "is_decodable", is_tried)
        image = open_image(tmp_path / "a.jpg", 3)
        assert image.resize((8, 8)).size == (8, 8)
