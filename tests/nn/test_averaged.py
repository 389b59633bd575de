"""Test-time views against numpy and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.model import BackboneConfig, SegmenterConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.errors import UserError
from beitkit.nn.averaged import averaged_logits, check_views, views_of

IMAGES = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_flips_and_shifts_are_numpy_s() -> None:
    found = [view.numpy() for view in views_of(IMAGES, InferenceConfig(flip=True, shift=2))]
    expected = []
    for image in (IMAGES.numpy(), IMAGES.numpy()[..., ::-1]):
        padded = np.pad(image, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="edge")
        up, down = padded[:, :, 4:, 2:-2], padded[:, :, :-4, 2:-2]
        expected += [image, up, down, padded[:, :, 2:-2, 4:], padded[:, :, 2:-2, :-4]]
    assert len(found) == 10
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_scales_are_pillow_s_around_the_center() -> None:
    larger, smaller = views_of(IMAGES, InferenceConfig(scales=(1.5, 0.5)))
    for image, zoomed, shrunk in zip(IMAGES.flatten(0, 1), larger.flatten(0, 1), smaller.flatten(0, 1), strict=True):
        pillow = Image.fromarray(image.numpy())
        expected = np.asarray(pillow.resize((18, 12), Image.Resampling.BILINEAR))[2:-2, 3:-3]
        assert np.allclose(zoomed.numpy(), expected, atol=1e-5)
        half = np.asarray(pillow.resize((6, 4), Image.Resampling.BILINEAR))
        assert np.allclose(shrunk.numpy(), np.pad(half, [(2, 2), (3, 3)], mode="edge"), atol=1e-5)
    assert [view.shape for view in views_of(IMAGES, InferenceConfig(scales=(0.9, 1.07)))] == [IMAGES.shape] * 2


def test_logits_are_averaged_and_alone_they_are_themselves() -> None:
    weight = torch.randn(3 * 8 * 12, 5, generator=torch.Generator().manual_seed(1))

    def model(images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) @ weight).tanh()

    assert torch.equal(averaged_logits(model, IMAGES, InferenceConfig()), model(IMAGES))
    both = averaged_logits(model, IMAGES, InferenceConfig(flip=True))
    assert torch.allclose(both, (model(IMAGES) + model(IMAGES.flip(-1))) / 2)


def test_views_of_the_other_kind_are_refused() -> None:
    check_views(InferenceConfig(scales=(0.9, 1.1), flip=True, shift=7), (8, 12))
    with pytest.raises(UserError, match="`inference.shift` must be less than the 8 pixels .* got 8"):
        check_views(InferenceConfig(shift=8), (8, 12))
    with pytest.raises(UserError, match="`inference.stride` is for segmentation"):
        check_views(InferenceConfig(stride=4), (8, 12))
    with pytest.raises(UserError, match="`inference.shift` is for classifiers"):
        SegmenterConfig(
            backbone=BackboneConfig.named("nano/16", final_norm=False), classes=("a",), inference=InferenceConfig(shift=1)
        )
