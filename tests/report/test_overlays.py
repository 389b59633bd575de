"""Colors of label maps: looked up pixel by pixel."""

import pytest
import torch

from beitkit.configs.segmentation import default_palette
from beitkit.report.overlays import colored, error_map, legend, overlay

PALETTE = ((255, 0, 0), (0, 128, 0), (0, 0, 255))


def test_every_pixel_gets_its_class_color_and_ignored_ones_are_black() -> None:
    shown = colored(torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8), PALETTE) * 255
    assert [tuple(shown[:, row, column].tolist()) for row in (0, 1) for column in (0, 1)] == [*PALETTE, (0, 0, 0)]


def test_an_overlay_mixes_by_its_share_and_leaves_ignored_pixels_alone() -> None:
    image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    shown = overlay(image, torch.tensor([[0, 255]], dtype=torch.uint8), PALETTE, share=0.25) * 255
    assert shown[:, 0, 0].tolist() == pytest.approx([0.75 * 100 + 0.25 * 255, 75, 75], abs=1e-3)
    assert shown[:, 0, 1].tolist() == pytest.approx([100, 100, 100], abs=1e-3)


def test_a_gray_image_can_be_overlaid() -> None:
    assert overlay(torch.zeros(1, 4, 5, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.uint8), PALETTE).shape == (3, 4, 5)


def test_an_error_map_has_three_colors() -> None:
    predicted, truth = torch.tensor([[1, 1, 1]], dtype=torch.uint8), torch.tensor([[1, 0, 255]], dtype=torch.uint8)
    right, wrong, uncounted = error_map(predicted, truth)[:, 0].T.tolist()
    assert min(right) > 0.8
    assert wrong[0] > 0.8 > 0.2 > wrong[1]
    assert uncounted[0] == uncounted[1] == uncounted[2]


@pytest.mark.parametrize("count", [1, 21, 150, 255])
def test_made_up_colors_differ_from_each_other_and_from_black(count: int) -> None:
    colors = default_palette(count)
    assert len(set(colors)) == count
    assert all(max(color) > 40 for color in colors)


def test_a_legend_shows_every_color_and_wraps() -> None:
    names = [f"class {index}" for index in range(12)]
    colors = default_palette(12)
    shown = (legend(names, colors, width=300) * 255).round().long()
    pixels = set(map(tuple, shown.flatten(1).T.tolist()))
    assert set(colors) <= pixels
    assert shown.shape[2] == 300
    assert shown.shape[1] > legend(names[:1], colors[:1], width=300).shape[1]
