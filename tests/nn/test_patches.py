"""Cutting images into patches against slicing them, and back."""

import torch

from beitkit.nn.patches import from_patches, to_patches


def test_patches_are_slices_in_raster_order_and_come_back() -> None:
    images = torch.arange(2 * 3 * 4 * 9, dtype=torch.float32).view(2, 3, 4, 9)
    patches = to_patches(images, (2, 3))
    assert patches.shape == (2, 6, 18)
    for row in range(2):
        for column in range(3):
            piece = images[1, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            assert patches[1, 3 * row + column].equal(piece.flatten())
    assert from_patches(patches, (2, 3), (2, 3)).equal(images)
