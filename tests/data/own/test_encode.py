"""Images in memory as files: what is read of them is what was given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.data.decoding.decode import Encoded
from beitkit.data.decoding.raw import read_raw
from beitkit.data.decoding.reading import as_tensor, whole_image
from beitkit.data.own.encode import described, encoded, named
from beitkit.data.own.images import Path

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)


def read(image: object, channels: int = 3) -> torch.Tensor:
    return as_tensor(whole_image(Encoded(Path("x"), encoded(image)), channels))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
        PIXELS.astype(np.float64) / 255,
        PIXELS[:, ::-1][:, ::-1],
    ],
    ids=["Pillow", "array", "tensor", "ToTensor", "float64", "not contiguous"],
)
def test_rgb_of_8_bits_comes_back_to_the_bit(image: object) -> None:
    assert torch.equal(read(image), torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize(
    "image", [PIXELS[..., 0], PIXELS[..., :1], torch.from_numpy(PIXELS[..., 0]), Image.fromarray(PIXELS[..., 0])]
)
def test_gray_comes_back_to_the_bit(image: object) -> None:
    assert torch.equal(read(image, channels=1), torch.from_numpy(PIXELS[..., 0])[None])


def test_transparency_is_laid_on_white_and_orientation_is_obeyed() -> None:
    clear = np.dstack([PIXELS, np.zeros((7, 9), dtype=np.uint8)])
    assert read(Image.fromarray(clear)).unique().tolist() == [255]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    turned = np.rot90(PIXELS, -1)
    assert torch.equal(read(Image.open(file)), torch.from_numpy(turned.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["uint16", "float32", "int32"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_other_numbers_keep_all_their_bits(kind: str, channels: int) -> None:
    values = (np.random.default_rng(1).random((20, 30, channels)) * 3000).astype(kind)
    for given in (values, torch.from_numpy(values.astype(kind if kind != "uint16" else "int32")).permute(2, 0, 1)):
        raw = read_raw(Encoded(Path("x"), encoded(given)))
        assert np.array_equal(raw.values, values.transpose(2, 0, 1))
    if channels == 1 and kind != "int32":
        assert np.array_equal(read_raw(Encoded(Path("x"), encoded(Image.fromarray(values[..., 0])))).values[0], values[..., 0])


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ("cat.jpg", "a str"),
        (np.zeros(5), r"an array of shape \(5,\) and type float64"),
        (torch.zeros(2, 3, 8, 8), r"a tensor of shape \(2, 3, 8, 8\) and type torch.float32"),
        (np.zeros((4, 4, 17), dtype=np.uint8), "17"),
        (np.zeros((0, 4), dtype=np.uint8), r"\(0, 4\)"),
        (np.zeros((4, 4), dtype=np.complex64), "complex64"),
    ],
)
def test_what_is_no_image_is_told(image: object, what: str) -> None:
    with pytest.raises(TypeError, match=what):
        encoded(image)


def test_objects_are_named_as_python_has_them() -> None:
    assert named(torch.utils.data.TensorDataset()) == "torch.utils.data.dataset.TensorDataset"
    assert named(np.flip) == "numpy.flip"
    assert named(x for x in ()) == "generator"
    assert described([], ", 3 images") == "<python: list, 3 images>"
