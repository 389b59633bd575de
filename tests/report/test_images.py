from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.report.images import enlarge, fit, masked_image, png_bytes, sheet, to_bytes, token_map


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_a_png_holds_exactly_the_image() -> None:
    values = torch.randint(0, 256, (3, 5, 7))
    image = decoded(png_bytes(values / 255))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), values.permute(1, 2, 0).numpy())


def test_a_gray_image_stays_gray() -> None:
    values = torch.randint(0, 256, (1, 5, 7))
    image = decoded(png_bytes(values / 255))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), values[0].numpy())


def test_values_outside_are_cut_off_and_nothing_but_numbers_is_black() -> None:
    values = torch.tensor([-1.0, 2.0, math.nan, math.inf]).view(1, 2, 2)
    assert to_bytes(values)[0].flatten().tolist() == [0, 255, 0, 0]


def test_of_other_channels_the_first_are_shown() -> None:
    values = torch.arange(13.0).view(13, 1, 1) / 12
    assert to_bytes(values).flatten().tolist() == [0, 21, 42]
    assert to_bytes(values[2:4]).flatten().tolist() == [42, 42, 42]


def test_enlarging_repeats_pixels() -> None:
    image = torch.rand(3, 4, 5)
    assert torch.equal(enlarge(image, 3), torch.from_numpy(np.kron(image.numpy(), np.ones((1, 3, 3), dtype=np.float32))))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((28, 28), (112, 112)), ((32, 16), (128, 64)), ((128, 128), (128, 128)), ((500, 250), (128, 64)), ((1, 1000), (1, 128))],
)
def test_images_fit_into_their_cell(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit(torch.rand(3, *size)).shape[1:] == expected


def test_reducing_averages() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(256).view(1, 1, 512).expand(3, 512, 512)
    assert fit(stripes)[:, 8:-8, 8:-8].sub(0.5).abs().max() < 0.02


def test_masked_patches_are_hatched_and_the_others_untouched() -> None:
    image = torch.rand(3, 12, 8)
    mask = torch.zeros(3, 2, dtype=torch.bool)
    mask[0, 1] = mask[2, 0] = True
    shown = masked_image(image, mask.flatten(), (3, 2), cell=48)  # 4 times as large: patches of 16 x 16
    plain = enlarge(image, 4)
    assert shown.shape == plain.shape
    for row in range(3):
        for column in range(2):
            place = (slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
            if mask[row, column]:
                assert shown[place].unique().tolist() == pytest.approx([0.52, 0.72])
            else:
                assert torch.equal(shown[place], plain[place])


def test_a_mask_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2 patches has 4, the mask has 5"):
        masked_image(torch.rand(3, 8, 8), torch.zeros(5, dtype=torch.bool), (2, 2))


def test_a_token_has_one_color_everywhere_and_different_tokens_differ() -> None:
    first = token_map(torch.arange(64).view(8, 8), 64, cell=8)
    second = token_map(torch.tensor([[5, 63]]), 8192, cell=2)
    colors = first.flatten(1).T  # (64, 3)
    assert torch.equal(second[:, 0, 0], colors[5])
    assert torch.equal(second[:, 0, 1], colors[63])
    distances = torch.cdist(colors, colors) + torch.eye(64)
    assert distances.min() > 0.03
    assert colors.min() >= 0
    assert colors.max() <= 1


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.7 with a vocabulary of 8, got 0\.\.8"):
        token_map(torch.tensor([[0, 8]]), 8)


def test_a_sheet_holds_every_image_in_its_place() -> None:
    red, gray = torch.zeros(2, 3, 4, 4), torch.full((2, 1, 8, 8), 0.4)
    red[:, 0] = 1
    page = sheet({"original": red, "a rather long heading for a cell": gray}, cell=32)
    assert page.shape == (3, 2 * 42 + 26, 2 * 42 + 10)
    for row in range(2):
        top = 26 + 42 * row
        assert torch.equal(page[:, top : top + 32, 10:42], torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 32, 32))
        assert torch.allclose(page[:, top : top + 32, 52:84], torch.full((3, 32, 32), 102 / 255))
    assert page[:, :26].min() < 0.5  # the headings


@pytest.mark.parametrize(
    "columns", [{}, {"a": torch.zeros(0, 3, 2, 2)}, {"a": torch.zeros(1, 3, 2, 2), "b": torch.zeros(2, 3, 2, 2)}]
)
def test_columns_need_the_same_rows(columns: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="same number of images"):
        sheet(columns)
