"""Image and label map move together, labels stay labels, colors change as HSV says, and padding is nothing."""

from __future__ import annotations

import colorsys
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beitkit.configs.data import IMAGENET, SceneViewConfig
from beitkit.data.decoding.decode import to_tensor
from beitkit.data.stream import normalized
from beitkit.data.views.image import Box
from beitkit.data.views.scene import (
    SceneTrainView,
    distorted,
    fitted_size,
    resized_part,
    saturated,
    training_size,
    turned_hue,
    varied_crop,
    with_zeroed_padding,
)
from beitkit.errors import UserError

PLAIN = SceneViewConfig(flip=0.0, distortion=0.0, max_share=1.0)
OFF = replace(PLAIN, distortion=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0)


def noise(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def blocks(height: int, width: int, seed: int = 0, side: int = 16) -> np.ndarray:
    """Label maps of even blocks, some of them ignored."""
    small = np.random.default_rng(seed).choice([0, 3, 100, 200, 255], (-(-height // side), -(-width // side)))
    return np.kron(small, np.ones((side, side)))[:height, :width].astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "short", "long", "size"),
    [
        ((375, 500), 512, 2048, (512, 683)),  # 500 * 512 / 375 = 682.67
        ((500, 375), 512, 2048, (683, 512)),
        ((100, 1000), 512, 2048, (205, 2048)),  # the longer side limits: 100 * 2.048 = 204.8
        ((360, 480), 360, 1440, (360, 480)),
        ((5, 10), 1, 4, (1, 2)),
        ((1, 1000), 8, 32, (1, 32)),
    ],
)
def test_golden_sizes(image: tuple[int, int], short: int, long: int, size: tuple[int, int]) -> None:
    assert fitted_size(image, short, long) == size


def test_the_base_size_is_four_times_the_crop_by_the_crop() -> None:
    # A factor of 1.37 on (2048, 512): (2805, 701) in whole pixels; 500 * 701 / 375 = 934.67.
    assert training_size((375, 500), (512, 512), PLAIN, 1.37) == (701, 935)
    assert training_size((375, 500), (512, 1024), PLAIN, 1.0) == (512, 683)
    assert training_size((100, 1000), (512, 512), replace(PLAIN, long_side=2.0), 1.0) == (102, 1024)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.tuples(st.integers(4, 70), st.integers(4, 70)),
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_labels_are_never_mixed(height: int, width: int, crop: tuple[int, int], seed: int, mode: str) -> None:
    labels = blocks(height, width, seed, side=5)
    sample = SceneTrainView(SceneViewConfig(), crop)(noise(height, width, mode), Image.fromarray(labels), random.Random(seed))
    assert set(sample["label_map"].unique().tolist()) <= {*np.unique(labels).tolist(), 255}
    down, across = sample["extent"].tolist()
    assert 1 <= down <= crop[0]
    assert 1 <= across <= crop[1]
    assert sample["images"].shape == (3 if mode == "RGB" else 1, *crop)
    assert sample["images"].dtype == sample["label_map"].dtype == torch.uint8
    outside = torch.ones(crop, dtype=torch.bool)
    outside[:down, :across] = False
    assert (sample["label_map"][outside] == 255).all()
    assert (sample["images"][:, outside] == 0).all()


@pytest.mark.parametrize("crop", [(48, 48), (32, 64)])
def test_image_and_label_map_move_together(crop: tuple[int, int]) -> None:
    labels = blocks(90, 130)
    image = Image.fromarray(labels)  # each pixel shows its own label
    view = SceneTrainView(replace(PLAIN, flip=0.5), crop)
    compared = 0
    for seed in range(20):
        sample = view(image, Image.fromarray(labels), random.Random(seed))
        height, width = sample["extent"].tolist()
        shown, given = (sample[key].reshape(crop)[:height, :width].float()[None, None] for key in ("images", "label_map"))
        # Inside blocks: where a neighborhood as wide as the filter lies in the sample and has one label only.
        largest = torch.nn.functional.max_pool2d(given, 5, 1)
        inside = largest == -torch.nn.functional.max_pool2d(-given, 5, 1)
        assert torch.equal(shown[..., 2:-2, 2:-2][inside], given[..., 2:-2, 2:-2][inside])
        compared += int(inside.sum())
    assert compared > 20 * 300


def test_equal_generators_give_equal_views_and_inputs_stay() -> None:
    image, labels = noise(60, 80), Image.fromarray(blocks(60, 80))
    before = image.tobytes(), labels.tobytes()
    view = SceneTrainView(SceneViewConfig(), (32, 32))
    first, again, other = (view(image, labels, random.Random(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["images"], other["images"])
    assert (image.tobytes(), labels.tobytes()) == before


def test_flips_come_as_often_as_asked() -> None:
    labels = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    view = SceneTrainView(replace(PLAIN, flip=0.3, scale=(1.0, 1.0)), (8, 8))
    shown = [view(labels, labels, random.Random(seed)) for seed in range(500)]
    flipped = [torch.equal(sample["label_map"], to_tensor(labels)[0].flip(1)) for sample in shown]
    assert all(torch.equal(sample["images"][0], sample["label_map"]) for sample in shown)
    assert sum(flipped) == pytest.approx(150, abs=45)


@pytest.mark.parametrize("size", [(37, 51), (120, 200)])
def test_a_part_is_the_part_of_the_whole(size: tuple[int, int]) -> None:
    image, box = noise(60, 100), Box(11, 5, 20, 30)
    whole = image.resize((size[1], size[0]), Image.Resampling.BILINEAR).crop((5, 11, 35, 31))
    part = resized_part(image, size, box)
    assert (to_tensor(part).int() - to_tensor(whole).int()).abs().max() <= 1


def test_crops_avoid_one_class_where_they_can() -> None:
    labels = np.zeros((64, 256), dtype=np.uint8)
    labels[:, 200:] = 1
    crop, accepted = (64, 64), 0
    for seed in range(200):
        # The same draws by hand: the first acceptable one of ten, else the eleventh.
        rng, lefts = random.Random(seed), []
        for _ in range(11):
            rng.randint(0, 0)
            lefts.append(rng.randint(0, 256 - 64))
        shares = [max(min(200 - left, 64), left) if left >= 200 else min(200 - left, 64) for left in lefts]
        good = [left for left, zeros in zip(lefts[:10], shares, strict=False) if 0.25 < zeros / 64 < 0.75]
        expected = good[0] if good else lefts[10]
        assert varied_crop(labels, crop, 0.75, random.Random(seed)) == (0, expected, 64, 64)
        accepted += bool(good)
    assert 50 < accepted < 200


def test_ignored_pixels_do_not_count_for_the_crop() -> None:
    # 7/8 are ignored; of the rest one class has half: acceptable at once, although 255 fills the crop.
    labels = np.full((8, 64), 255, dtype=np.uint8)
    labels[0, ::2], labels[0, 1::2] = 0, 1
    rng = random.Random(0)
    rng.randint(0, 0)
    assert varied_crop(labels, (8, 32), 0.75, random.Random(0)).left == rng.randint(0, 32)


def test_a_share_of_one_takes_the_first_crop() -> None:
    rng = random.Random(5)
    first = rng.randint(0, 32), rng.randint(0, 32)
    assert varied_crop(np.zeros((64, 64), dtype=np.uint8), (32, 32), 1.0, random.Random(5))[:2] == first


def reference_hsv(pixels: np.ndarray, factor: float, steps: int) -> np.ndarray:
    """Saturation times a factor, hue plus steps of 180, pixel by pixel with the standard library."""
    changed = np.empty(pixels.shape, dtype=np.float64)
    for y, x in np.ndindex(*pixels.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[:, y, x] / 255))
        changed[:, y, x] = colorsys.hsv_to_rgb((hue + steps / 180) % 1, min(1, saturation * factor), value)
    return changed * 255


COLORS = to_tensor(noise(12, 12)).numpy().astype(np.float32)
COLORS[:, 0, :4] = [[0, 255, 90, 7], [0, 255, 90, 0], [0, 255, 90, 0]]  # black, white, gray, nearly black


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.49, 8.0])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    np.testing.assert_allclose(saturated(COLORS, factor), reference_hsv(COLORS, factor, 0), atol=1e-3)


@pytest.mark.parametrize("steps", [-90, -18, -1, 0, 17, 60])
def test_hue_is_turned_in_steps_of_two_degrees(steps: int) -> None:
    np.testing.assert_allclose(turned_hue(COLORS, steps), reference_hsv(COLORS, 1, steps), atol=1e-3)


def test_brightness_and_contrast_are_a_sum_and_a_product() -> None:
    image = to_tensor(noise(5, 7))
    sums, products = set(), set()
    for seed in range(30):
        brighter = distorted(image, replace(OFF, brightness=32.0), random.Random(seed)).int()
        inner = (image > 40) & (image < 215)
        difference = (brighter - image)[inner]
        assert difference.max() - difference.min() <= 1
        assert difference.abs().max() <= 32
        sums.add(int(difference[0]))
        more = distorted(image, replace(OFF, contrast=0.5), random.Random(seed)).float()
        factors = (more / image)[(image > 100) & (more < 255)]
        assert factors.max() - factors.min() < 0.02
        assert factors.min() > 0.49
        assert factors.max() < 1.51
        products.add(round(float(factors[0]), 1))
    assert len(sums) > 15
    assert len(products) > 5


def test_distortions_follow_their_probability_and_their_order() -> None:
    image = to_tensor(noise(6, 6))
    assert torch.equal(distorted(image, PLAIN, random.Random(0)), image)
    assert (distorted(image, OFF, random.Random(0)).int() - image).abs().max() == 0
    bright = replace(OFF, brightness=32.0, distortion=0.3)
    changed = sum(not torch.equal(distorted(image, bright, random.Random(seed)), image) for seed in range(300))
    assert changed == pytest.approx(90, abs=35)
    # Contrast and saturation do not commute where values are cut off: both orders occur.
    strong = replace(OFF, contrast=0.5, saturation=0.5)
    seen = set()
    for seed in range(40):
        rng = random.Random(seed)
        first = rng.random() < 0.5
        rng.random(), rng.uniform(0, 0)
        steps: dict[str, float] = {}
        for name in ("contrast", "saturation") if first else ("saturation", "hue", "contrast"):
            rng.random()
            steps[name] = rng.randrange(0, 1) if name == "hue" else rng.uniform(0.5, 1.5)
        pixels = image.numpy().astype(np.float64)
        for name, factor in steps.items():
            if name == "contrast":
                pixels = np.rint(pixels * factor).clip(0, 255)
            elif name == "saturation":
                pixels = np.rint(reference_hsv(pixels, factor, 0))
        assert np.abs(distorted(image, strong, random.Random(seed)).numpy() - pixels).max() <= 1
        seen.add(first)
    assert seen == {True, False}


def test_gray_images_change_in_brightness_and_contrast_only() -> None:
    image = to_tensor(noise(6, 6, "L"))
    assert torch.equal(distorted(image, replace(OFF, saturation=0.9, hue=90), random.Random(0)), image)
    assert not torch.equal(distorted(image, SceneViewConfig(distortion=1.0), random.Random(0)), image)


def test_padding_is_exactly_zero_after_normalization() -> None:
    view = SceneTrainView(replace(PLAIN, scale=(0.5, 0.5)), (32, 48))
    sample = view(noise(40, 60), Image.fromarray(blocks(40, 60)), random.Random(0))
    assert sample["extent"].tolist() == [16, 24]
    batch = {key: torch.stack([value, value]) for key, value in sample.items()}
    batch["extent"] = torch.tensor([[16, 24], [32, 10]])
    plain = next(iter(normalized([batch], IMAGENET.mean, IMAGENET.std)))["images"]
    images = next(iter(with_zeroed_padding(normalized([batch], IMAGENET.mean, IMAGENET.std))))["images"]
    assert torch.equal(images[0, :, :16, :24], plain[0, :, :16, :24])
    assert torch.equal(images[1, :, :, :10], plain[1, :, :, :10])
    assert (plain[0, :, 16:] != 0).all()
    assert images[0, :, 16:].abs().max() == images[0, :, :, 24:].abs().max() == images[1, :, :, 10:].abs().max() == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("long_side", 0.5),
        ("max_share", 0.0),
        ("flip", 1.5),
        ("distortion", -0.1),
        ("brightness", 300.0),
        ("contrast", 1.0),
        ("saturation", -1.0),
        ("hue", 91),
        ("long_side", float("nan")),
    ],
)
def test_impossible_options_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"`view.{field}` must"):
        replace(PLAIN, **{field: value})  # type: ignore[arg-type]
