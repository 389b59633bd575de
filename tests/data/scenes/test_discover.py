"""Masks without a description: true classes are taken, however many and rare; what smoothing and JPEG make is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from beitkit.data.scenes.scenes import find_scenes, train_and_val_scenes
from beitkit.errors import UserError


def drawn(number: int, values: tuple[int, ...]) -> Image.Image:
    """A disk of each value on the first one."""
    rng = np.random.default_rng(number)
    image = Image.new("L", (96, 96), values[0])
    for value in values[1:]:
        left, top = rng.integers(0, 64, 2).tolist()
        ImageDraw.Draw(image).ellipse((left, top, left + 28, top + 24), fill=value)
    return image


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    with Image.open(buffer) as decoded:
        return decoded.convert("L")


def resized(how: Image.Resampling) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((64, 60), how)


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1))


def dataset(path: Path, values: tuple[int, ...], change: Callable[[Image.Image], Image.Image], count: int = 6) -> Path:
    for folder in ("images", "masks"):
        (path / folder).mkdir()
    for number in range(count):
        mask = change(drawn(number, values))
        mask.save(path / "masks" / f"{number}.png")
        Image.new("RGB", mask.size).save(path / "images" / f"{number}.png")
    return path


@pytest.mark.parametrize("values", [(0, 255), (0, 128), (0, 60, 120, 180)])
@pytest.mark.parametrize(
    "change",
    [jpeg, blurred, resized(Image.Resampling.BILINEAR), resized(Image.Resampling.LANCZOS), resized(Image.Resampling.BOX)],
    ids=["jpeg", "blurred", "bilinear", "lanczos", "box"],
)
def test_smoothed_masks_are_refused_unless_they_are_meant(
    tmp_path: Path, values: tuple[int, ...], change: Callable[[Image.Image], Image.Image]
) -> None:
    path = dataset(tmp_path, values, change)
    with pytest.raises(UserError, match=r"rare and along edges only \(.*as in smoothed or JPEG copies of masks with") as caught:
        find_scenes(path)
    assert "\n" not in str(caught.value)
    assert "`all_values`" in str(caught.value)
    found = {int(value) for mask in (path / "masks").iterdir() for value in np.unique(np.asarray(Image.open(mask)))}
    meant, _ = train_and_val_scenes(path, None, 0, all_values=True)
    assert meant.classes == tuple(f"class {value}" for value in sorted(found - {255}))


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), (0, 50, 100, 150, 200)])
def test_masks_resized_by_the_nearest_pixel_keep_their_classes(tmp_path: Path, values: tuple[int, ...]) -> None:
    path = dataset(tmp_path, values, resized(Image.Resampling.NEAREST), count=12)
    assert find_scenes(path).classes == tuple(f"class {value}" for value in values)


def test_a_hundred_rare_classes_are_taken(tmp_path: Path) -> None:
    path = dataset(tmp_path, tuple(range(100)), lambda image: image, count=30)
    assert len(find_scenes(path).classes) == 100


def test_some_thin_classes_are_taken(tmp_path: Path) -> None:
    def with_lines(image: Image.Image) -> Image.Image:
        for value in range(4, 8):
            ImageDraw.Draw(image).line((0, 10 * value, 95, 10 * value), fill=value)
        return image

    assert len(find_scenes(dataset(tmp_path, (0, 1, 2, 3), with_lines)).classes) == 8
