"""An image is shown to a network the same way in whatever form it comes."""

from __future__ import annotations

import pickle
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.data import IMAGENET
from beitkit.data.reader import ImageReader
from beitkit.errors import UserError

READER = ImageReader(preprocessing=IMAGENET, image_size=(48, 64), patch=(16, 16), channels=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png")
    first = torch.from_numpy(PIXELS).permute(2, 0, 1)
    forms = [str(tmp_path / "a.png"), tmp_path / "a.png", image, PIXELS, PIXELS.transpose(2, 0, 1), first, PIXELS / 255]
    forms += [first.float() / 255, torch.from_numpy(PIXELS), image.convert("RGBA")]
    read = pickle.loads(pickle.dumps(READER))(forms)
    assert read.shape == (len(forms), 3, 48, 64)
    assert read.dtype == torch.float32
    for other in read[1:]:
        torch.testing.assert_close(other, read[0], rtol=0, atol=0)


def test_the_numbers_are_the_crop_s() -> None:
    """An image that is already at the size that evaluation resizes to is only cut and normalized."""
    pixels = np.random.default_rng(1).integers(0, 256, (54, 73, 3), dtype=np.uint8)  # 48 / 0.875 and 64 / 0.875, rounded down
    expected = (pixels[3:51, 4:68] / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    np.testing.assert_allclose(READER([pixels])[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_gray_and_axes_that_could_be_either() -> None:
    gray = ImageReader(preprocessing=IMAGENET, image_size=(48, 64), patch=(16, 16), channels=1)
    flat = PIXELS[..., 0]
    read = gray([flat, flat[..., None], flat[None], torch.from_numpy(flat)])
    assert read.shape == (4, 1, 48, 64)
    assert all(torch.equal(other, read[0]) for other in read)
    ambiguous = np.zeros((3, 50, 3), dtype=np.uint8)
    ambiguous[0] = 255
    as_array, as_tensor = READER([ambiguous, torch.from_numpy(ambiguous)])
    assert as_array.mean((1, 2)).std() < as_tensor.mean((1, 2)).std()  # the tensor's first axis are colors: it is red


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((5, 6, 7), np.uint8), "shape (5, 6, 7) is no image"),
        (np.zeros((0, 6, 3), np.uint8), "shape (0, 6, 3) is no image"),
        (np.zeros((1, 3, 8, 8), np.uint8), "shape (1, 3, 8, 8) is no image"),
        (np.full((8, 8, 3), 200.0), "must lie in [0, 1], got 200 to 200"),
        (np.full((8, 8), np.nan), "must lie in [0, 1]"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        ("nowhere.png", "nowhere.png cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray | str, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        READER([image])
    assert expected in str(refused.value)


def test_bfloat16() -> None:
    pixels = torch.from_numpy(PIXELS).permute(2, 0, 1)
    shown = READER([(pixels.float() / 255).bfloat16()])
    torch.testing.assert_close(shown, READER([pixels]), rtol=0, atol=0.02)


@pytest.mark.parametrize("image", [[[0.1, 0.2], [0.3, 0.4]], ("a.png", "b.png"), 7, None], ids=str)
def test_what_is_no_image_is_said_in_words(image: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no such checks
    with pytest.raises(UserError, match="is no image; expected a path, a Pillow image, or an array or tensor") as caught:
        READER([image])  # type: ignore[list-item]
    assert type(image).__name__ in str(caught.value)
