"""Flips and quarter turns against Pillow and NumPy: images and label maps move as one, and by default nothing is drawn."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import SceneViewConfig, ViewConfig
from beitkit.data.decoding.decode import to_tensor
from beitkit.data.views.image import PretrainView, TrainView, crop_box
from beitkit.data.views.orientation import drawn_orientation, drawn_turns, oriented
from beitkit.data.views.scene import SceneTrainView

WHOLE = ViewConfig(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), color_jitter=0.0, flip=0.5, vertical_flip=0.5, quarter_turns=0.75
)
ALL_EIGHT = {bytes(np.rot90(way, turns).tobytes()) for way in (np.arange(9).reshape(3, 3), np.fliplr(np.arange(9).reshape(3, 3)))
             for turns in range(4)}  # fmt: skip


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def moved(array: np.ndarray, seed: int, view: ViewConfig | SceneViewConfig) -> np.ndarray:
    """What NumPy makes of the draws: turns counterclockwise, then the flips."""
    rng = random.Random(seed)
    turns = drawn_turns(view, rng)
    array = np.rot90(array, turns)
    array = np.fliplr(array) if rng.random() < view.flip else array
    return np.flipud(array) if view.vertical_flip and rng.random() < view.vertical_flip else array


@pytest.mark.parametrize("orientation", [None, *Image.Transpose])
@pytest.mark.parametrize("shape", [(3, 5, 3), (4, 2)])
def test_pixels_move_as_pillow_moves_them(orientation: Image.Transpose | None, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    expected = Image.fromarray(pixels)
    expected = expected if orientation is None else expected.transpose(orientation)
    assert np.array_equal(oriented(torch.from_numpy(pixels), orientation).numpy(), np.asarray(expected))


@pytest.mark.parametrize("seed", range(40))
def test_orientations_are_turns_and_then_flips(seed: int) -> None:
    rng, pixels = random.Random(seed), np.arange(15).reshape(3, 5)
    orientation = drawn_orientation(WHOLE, drawn_turns(WHOLE, rng), rng)
    assert np.array_equal(oriented(torch.from_numpy(pixels), orientation).numpy(), moved(pixels, seed, WHOLE))


def test_all_eight_are_as_likely() -> None:
    pixels, counts = torch.arange(9).view(3, 3), Counter()
    rng = random.Random(0)
    for _ in range(4000):
        counts[oriented(pixels, drawn_orientation(WHOLE, drawn_turns(WHOLE, rng), rng)).numpy().tobytes()] += 1
    assert set(counts) == ALL_EIGHT
    assert min(counts.values()) > 400  # 500 expected, standard deviation 21


@pytest.mark.parametrize("seed", range(12))
def test_both_views_and_the_training_view_are_turned(seed: int) -> None:
    image = noise(40, 40)
    expected = torch.from_numpy(moved(np.asarray(image), seed, ViewConfig(flip=1.0, quarter_turns=1.0)).copy()).permute(2, 0, 1)
    view = replace(WHOLE, flip=1.0, vertical_flip=0.0, quarter_turns=1.0)
    # Of a square the whole is the only crop; where it lies is drawn between the turn and the flip.
    shown = PretrainView(view, (40, 40), (40, 40))(image, random.Random(seed))
    assert torch.equal(shown["images"], expected)
    assert torch.equal(shown["token_images"], expected)
    assert torch.equal(TrainView(replace(view), (40, 40))(image, random.Random(seed))["images"], expected)


@pytest.mark.parametrize("seed", range(6))
def test_a_turned_crop_has_the_aspect_that_is_asked_for(seed: int) -> None:
    image = noise(300, 200, seed)
    view = ViewConfig(crop_scale=(0.2, 0.2), crop_ratio=(2.0, 2.0), color_jitter=0.0, flip=0.0, quarter_turns=1.0)
    shown = PretrainView(view, (40, 80), None)(image, random.Random(seed))["images"]
    rng = random.Random(seed)
    turns = drawn_turns(view, rng)
    on_side = turns % 2 == 1
    box = crop_box((200, 300) if on_side else (300, 200), view.crop_scale, view.crop_ratio, rng)
    assert round(box.width / box.height, 1) == 2.0
    top, left, height, width = (box.left, box.top, box.width, box.height) if on_side else box
    part = np.rot90(np.asarray(image)[top : top + height, left : left + width], turns)
    expected = to_tensor(Image.fromarray(np.ascontiguousarray(part)).resize((80, 40), Image.Resampling.BICUBIC))
    assert (shown.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("size", [(28, 28), (28, 20)])
def test_small_images_are_turned_after_they_are_shifted(size: tuple[int, int]) -> None:
    view = ViewConfig(flip=0.0, color_jitter=0.0, vertical_flip=0.0, quarter_turns=1.0)
    for seed in range(6):
        shown = TrainView(view, size)(noise(40, 30), random.Random(seed))["images"]
        rng = random.Random(seed)
        turns = drawn_turns(view, rng)
        height, width = size if turns == 2 else size[::-1]
        across, down = rng.randint(-4, 4), rng.randint(-4, 4)
        small = noise(40, 30).resize((width, height), Image.Resampling.BICUBIC)
        small = small.crop((across, down, across + width, down + height))
        assert np.array_equal(shown.permute(1, 2, 0).numpy(), np.rot90(np.asarray(small), turns))


@pytest.mark.parametrize("crop", [(32, 32), (32, 48)])
@pytest.mark.parametrize("image", [(60, 90), (20, 70)])
def test_an_image_and_its_label_map_move_together(crop: tuple[int, int], image: tuple[int, int]) -> None:
    labels = Image.fromarray(np.random.default_rng(1).choice([0, 1, 2], image).astype(np.uint8))
    colors = labels.point([80 * value if value < 3 else 0 for value in range(256)])
    view = SceneViewConfig(distortion=0.0, max_share=1.0, scale=(1.0, 1.0), vertical_flip=0.5, quarter_turns=0.75)
    seen = set()
    for seed in range(30):
        # At the size of the image, so that the bilinear filter changes nothing.
        factor = min(image) / min(crop)
        sample = SceneTrainView(replace(view, scale=(factor, factor), long_side=9.0), crop)(colors, labels, random.Random(seed))
        counted = sample["label_map"] != 255
        assert torch.equal(sample["images"][0][counted], 80 * sample["label_map"][counted])
        height, width = sample["extent"].tolist()
        assert counted.sum() == height * width == counted[:height, :width].sum()
        assert sample["images"].shape[1:] == crop
        seen.add((height, width))
    assert len(seen) == (2 if min(image) < min(crop) or crop[0] != crop[1] else 1) or max(image) > max(crop)


def test_nothing_is_drawn_by_default_and_old_configs_stay_as_they_were() -> None:
    for view in (ViewConfig(), SceneViewConfig()):
        rng, untouched = random.Random(0), random.Random(0)
        assert drawn_turns(view, rng) == 0
        drawn_orientation(view, 0, rng)
        assert untouched.random() is not None  # the horizontal flip, as ever
        assert rng.getstate() == untouched.getstate()
        assert not {"vertical_flip", "quarter_turns"} & to_json(view).keys()
        assert from_json(type(view), to_json(view)) == view
    turned = ViewConfig(vertical_flip=0.5)
    assert from_json(ViewConfig, to_json(turned)) == turned
