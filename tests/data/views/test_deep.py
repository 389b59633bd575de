"""Views of deep images: the geometry of 8-bit images, no rounding, and jitter of any number of channels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.data import IMAGENET, SceneViewConfig, ViewConfig
from beitkit.data.decoding.deep import TURNS, DeepImage
from beitkit.data.views.augment import GEOMETRIC, ON_FLOATS, OPERATIONS, RandAugment
from beitkit.data.views.image import EvaluationView, PretrainView, ProbeView, TrainView
from beitkit.data.views.jitter import color_jittered
from beitkit.data.views.scene import SceneTrainView

BYTES = np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)
SMOOTH = np.asarray(Image.fromarray(BYTES).resize((7, 6)).resize((70, 60), Image.Resampling.BICUBIC))
IMAGE = Image.fromarray(SMOOTH)


def deep(pixels: np.ndarray) -> DeepImage:
    return DeepImage(np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / 255)


VIEWS = {
    "pretrain": PretrainView(ViewConfig(), (32, 32), (16, 16)),
    "train": TrainView(ViewConfig(), (48, 48)),
    "small": TrainView(ViewConfig(color_jitter=0.0), (32, 32)),
    "evaluation": EvaluationView(IMAGENET, (48, 48)),
    "small evaluation": EvaluationView(IMAGENET, (32, 32)),
    "probe": ProbeView((48, 48)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_a_deep_image_is_that_of_the_8_bit_image_but_for_rounding(name: str) -> None:
    for seed in range(6):
        expected = VIEWS[name](IMAGE, random.Random(seed))
        found = VIEWS[name](deep(SMOOTH), random.Random(seed))
        assert expected.keys() == found.keys()
        for key, images in found.items():
            assert images.dtype == torch.float32
            assert float((images - expected[key] / 255).abs().max()) < 6 / 255, (name, key, seed)
            assert len(images.unique()) > 300  # not only 256 values


def test_a_scene_of_a_deep_image_is_that_of_the_8_bit_image_but_for_rounding() -> None:
    labels = Image.fromarray((SMOOTH[..., 0] > 128).astype(np.uint8))
    view = SceneTrainView(SceneViewConfig(), (40, 40))
    for seed in range(8):
        expected, found = view(IMAGE, labels, random.Random(seed)), view(deep(SMOOTH), labels, random.Random(seed))
        assert found["label_map"].equal(expected["label_map"])
        assert found["images"].dtype == torch.float32
        assert float((found["images"] - expected["images"] / 255).abs().max()) < 9 / 255


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_any_number_of_channels_is_shown_and_jittered(channels: int) -> None:
    image = DeepImage(np.random.default_rng(1).random((channels, 40, 50), dtype=np.float32))
    for view in VIEWS.values():
        for images in view(image, random.Random(0)).values():
            assert images.shape[0] == channels
            assert 0 <= float(images.min()) <= float(images.max()) <= 1
    jittered = color_jittered(image, 0.4, random.Random(3))
    assert not np.array_equal(jittered.values, image.values)
    before = image.values.copy()
    TrainView(ViewConfig(), (33, 33), RandAugment(4, 9.0, 0.5, (0.5,) * channels), 0.5)(image, random.Random(0))
    assert np.array_equal(image.values, before)


@pytest.mark.parametrize("name", ON_FLOATS)
def test_an_operation_on_floats_is_that_on_256_values_but_for_rounding(name: str) -> None:
    augment = RandAugment(1, 7.0, 0.0, (0.485, 0.456, 0.406))
    applied = 0
    for seed in range(12):
        expected = augment.apply(name, IMAGE, random.Random(seed))
        found = augment.apply(name, deep(SMOOTH), random.Random(seed))
        difference = np.abs(found.values - np.asarray(expected).transpose(2, 0, 1) / 255)
        applied += expected is not IMAGE
        assert np.quantile(difference, 0.98) < 3 / 255, (name, seed)
    assert applied > 2


def test_operations_of_256_values_are_left_out_of_deep_images() -> None:
    assert set(OPERATIONS) - set(ON_FLOATS) == {"equalize", "posterize", "sharpness"}
    assert set(GEOMETRIC) <= set(ON_FLOATS)


@pytest.mark.parametrize("turn", TURNS)
def test_turns_and_crops_are_pillow_s(turn: Image.Transpose) -> None:
    assert np.allclose(deep(SMOOTH).transpose(turn).values, deep(np.asarray(IMAGE.transpose(turn))).values)
    for box in ((3, 4, 20, 30), (-5, -3, 90, 80), (60, 50, 75, 66)):
        assert np.allclose(deep(SMOOTH).crop(box).values, deep(np.asarray(IMAGE.crop(box))).values)


@pytest.mark.parametrize("filter", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_filters_are_pillow_s_on_floats(filter: Image.Resampling) -> None:
    channel = Image.fromarray(SMOOTH[..., 0].astype(np.float32) / 255)
    for size in ((20, 17), (90, 100)):
        expected = np.asarray(channel.resize(size, filter)).clip(0, 1)
        assert np.allclose(deep(SMOOTH).resize(size, filter).values[0], expected, atol=1e-5)
