"""Values as colors: the ends of the scale, where a patch lies, and how many maps are laid out."""

from __future__ import annotations

import pytest
import torch

from beitkit.report.heat import framed, heat, mosaic, over_image, relative, scaled_between, spread, tiled


def test_the_scale_goes_from_dark_to_yellow_and_cuts_what_lies_outside() -> None:
    colors = (heat(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, float("nan")])) * 255).round().T.tolist()
    assert colors == [[68, 1, 84], [68, 1, 84], [33, 144, 141], [253, 231, 37], [253, 231, 37], [68, 1, 84]]
    brightness = heat(torch.linspace(0, 1, 50)).mul(torch.tensor([[0.299], [0.587], [0.114]])).sum(0)
    assert (brightness.diff() > 0).all()  # also to be read without color


def test_values_lie_over_their_patches() -> None:
    values = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    shown = over_image(torch.zeros(3, 6, 4), values, cell=6, share=1.0)
    assert shown.shape == (3, 6, 4)
    assert torch.equal(shown[0] > 0.9, spread(values, (6, 4)) == 1)
    assert (spread(values, (6, 4)) == 1).nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_shares_of_the_largest_and_between_the_ends() -> None:
    assert relative(torch.tensor([1.0, 4.0])).tolist() == [0.25, 1]
    assert relative(torch.zeros(2)).tolist() == [0, 0]
    assert scaled_between(torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])).tolist() == [[0, 0], [1, 0], [0.5, 0]]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_frame_is_around_its_patch_and_nowhere_else(channels: int) -> None:
    shown = framed(torch.full((channels, 40, 40), 0.25), (2, 2), [3], cell=40)
    changed = ((shown - 0.25).abs() > 0.01).any(0)
    assert changed[20, 20]
    assert changed[39, 39]
    assert not changed[22:38, 22:38].any()
    assert not changed[:19].any()


def test_maps_in_rows_and_columns() -> None:
    page = mosaic(torch.rand(2, 3, 4, 4), cell=60)
    factor, gap = 4, 1
    assert page.shape == (3, 2 * 16 + gap, 3 * 16 + 2 * gap)
    assert (page[:, 16] == 1).all()
    assert factor == 60 // (3 * 5)
    assert tiled(torch.zeros(5, 3, 2, 2), 3).shape == (3, 5, 8)
    assert tiled(torch.zeros(5, 3, 2, 2), 3)[0, 3:, 6:].min() == 1  # where the last row ends
