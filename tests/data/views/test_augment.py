"""RandAugment and erasing against timm's own operations, drawn from the same random numbers."""

from __future__ import annotations

import importlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from beitkit.configs.data import IMAGENET, INCEPTION, NO_AUGMENT, PAPER_AUGMENT, AugmentConfig, ViewConfig
from beitkit.data.views.augment import OPERATIONS, RandAugment, draw_erasing, erased
from beitkit.data.views.image import TrainView
from beitkit.errors import UserError

TIMM_NAMES = {
    "auto contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear x": "ShearX",
    "shear y": "ShearY",
    "translate x": "TranslateXRel",
    "translate y": "TranslateYRel",
}
PAPER = RandAugment(2, 9.0, 0.5, IMAGENET.mean)


def noise_image(height: int = 40, width: int = 56, mode: str = "RGB") -> Image.Image:
    """A smooth ramp with noise, so that equalizing, contrast and rotation all change something."""
    ramp = np.linspace(30, 200, height * width).reshape(height, width, 1)
    noise = np.random.default_rng(0).integers(-20, 20, (height, width, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8)).convert(mode)


@pytest.fixture(scope="module")
def timm_ops(timm_library: Any) -> Any:
    return importlib.import_module("timm.data.auto_augment")


def test_the_fifteen_operations_are_those_of_the_increasing_set(timm_ops: Any) -> None:
    assert [TIMM_NAMES[name] for name in OPERATIONS] == timm_ops._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_timm_s_pixels_for_the_same_random_numbers(timm_ops: Any, name: str, mode: str) -> None:
    if mode == "L" and name == "color":
        pytest.skip("a gray image is never given it")
    image, changed = noise_image(mode=mode), 0
    fill: int | tuple[int, int, int] = (124, 116, 104) if mode == "RGB" else 114  # method 5.1; round(255 * 0.449)
    hparams = {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC, "magnitude_std": 0.5}
    theirs = timm_ops.AugmentOp(TIMM_NAMES[name], prob=0.5, magnitude=9, hparams=hparams)
    for seed in range(12):
        random.seed(seed)
        expected = theirs(image)
        ours = PAPER.apply(name, image, random.Random(seed))
        assert ours.mode == mode
        assert np.array_equal(np.array(ours), np.array(expected))
        changed += ours is not image
    assert 2 <= changed <= 10


@pytest.mark.parametrize("magnitude", [0.0, 3.0, 10.0])
def test_other_magnitudes_are_timm_s_too(timm_ops: Any, magnitude: float) -> None:
    image, augment = noise_image(), RandAugment(2, magnitude, 0.0, INCEPTION.mean)
    hparams = {"img_mean": (128, 128, 128), "interpolation": Image.Resampling.BICUBIC}
    for name, theirs in TIMM_NAMES.items():
        for seed in (1, 2, 3):
            random.seed(seed)
            operation = timm_ops.AugmentOp(theirs, prob=0.5, magnitude=magnitude, hparams=hparams)
            if name == "posterize" and magnitude == 10:  # Pillow has come to refuse what used to give black
                expected = Image.new("RGB", image.size) if random.random() <= 0.5 else image
            else:
                expected = operation(image)
            assert np.array_equal(np.array(augment.apply(name, image, random.Random(seed))), np.array(expected)), name


def test_operations_are_drawn_with_replacement_and_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []

    def noted(self: RandAugment, name: str, image: Image.Image, rng: random.Random) -> Image.Image:
        drawn[-1].append(name)
        return image

    monkeypatch.setattr(RandAugment, "apply", noted)
    for mode, count in (("RGB", 15), ("L", 14)):
        drawn.clear()
        for seed in range(3000):
            drawn.append([])
            PAPER(noise_image(4, 4, mode), random.Random(seed))
        assert {len(names) for names in drawn} == {2}
        first = [names[0] for names in drawn]
        assert len(set(first)) == count
        assert all(first.count(name) == pytest.approx(3000 / count, abs=60) for name in set(first))
        assert sum(names[0] == names[1] for names in drawn) == pytest.approx(3000 / count, abs=60)


def test_randaugment_depends_on_its_generator_only_and_leaves_the_image_alone() -> None:
    image = noise_image()
    before = image.tobytes()
    shown = [PAPER(image, random.Random(seed)).tobytes() for seed in range(30)]
    assert shown == [PAPER(image, random.Random(seed)).tobytes() for seed in range(30)]
    assert len(set(shown)) > 15
    assert image.tobytes() == before


def test_with_randaugment_a_view_has_no_jitter_and_without_it_nothing_changes() -> None:
    image = noise_image(16, 16)
    jittered, plain = ViewConfig(color_jitter=0.4), ViewConfig(color_jitter=0.0)
    for seed in range(10):
        augmented = [TrainView(view, (16, 16), PAPER)(image, random.Random(seed))["images"] for view in (jittered, plain)]
        assert torch.equal(*augmented)
        rng = random.Random(seed)
        whole = TrainView(plain, (16, 16))(image, rng)["images"]
        expected = PAPER(Image.fromarray(whole.permute(1, 2, 0).numpy()), rng)
        assert torch.equal(augmented[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_erased_boxes_are_those_of_timm(timm_library: Any) -> None:
    theirs = importlib.import_module("timm.data.random_erasing").RandomErasing(
        probability=0.25, mode="pixel", device="cpu", max_count=1
    )
    count = 0
    for seed in range(400):
        random.seed(seed)
        image = torch.zeros(3, 24, 40)
        theirs(image)
        rows, columns = (image != 0).any(0).any(1).nonzero(), (image != 0).any(0).any(0).nonzero()
        top, left, height, width, noise = draw_erasing((24, 40), 0.25, random.Random(seed)).tolist()
        if height:
            count += 1
            assert (top, left, height, width) == (rows[0], columns[0], len(rows), len(columns))
            assert 0 < noise < 2**63
        else:
            assert not image.any()
            assert noise == 0
    assert count == pytest.approx(100, abs=25)


def test_erasing_fills_the_box_with_standard_noise_by_the_sample_s_seed() -> None:
    boxes = torch.tensor([[4, 8, 40, 32, 7], [0, 0, 0, 0, 0], [4, 8, 40, 32, 8]])
    images = torch.full((3, 3, 64, 64), 5.0)
    (batch,) = erased([{"images": images, "erased": boxes}])
    assert set(batch) == {"images"}
    assert torch.equal(images, torch.full((3, 3, 64, 64), 5.0))
    filled = batch["images"][0, :, 4:44, 8:40]
    assert filled.mean().abs() < 0.05
    assert (filled.std() - 1).abs() < 0.05
    assert (batch["images"][0] != 5).sum() == 3 * 40 * 32
    assert torch.equal(batch["images"][1], images[1])
    assert not torch.equal(batch["images"][2], batch["images"][0])
    (alone,) = erased([{"images": images[:1], "erased": boxes[:1]}])
    assert torch.equal(alone["images"][0], batch["images"][0])


def test_a_view_draws_its_erasing_last() -> None:
    image = noise_image(16, 16)
    for seed in range(20):
        rng = random.Random(seed)
        whole = TrainView(ViewConfig(), (16, 16))(image, rng)
        sample = TrainView(ViewConfig(), (16, 16), erasing=1.0)(image, random.Random(seed))
        assert torch.equal(sample["images"], whole["images"])
        assert torch.equal(sample["erased"], draw_erasing((16, 16), 1.0, rng))
        assert set(whole) == {"images"}


def test_the_fill_of_a_translation_is_the_mean() -> None:
    black = Image.new("RGB", (40, 40))
    seed = next(seed for seed in range(20) if random.Random(seed).random() <= 0.5)
    shown = np.array(RandAugment(1, 10.0, 0.0, IMAGENET.mean).apply("translate x", black, random.Random(seed)))
    filled = (shown == (124, 116, 104)).all(2)
    assert filled.all(0).sum() == 18  # 0.45 of 40 columns
    assert np.array_equal(np.array(ImageOps.grayscale(Image.fromarray(shown)))[:, ~filled.any(0)], np.zeros((40, 22)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": -1}, "`augment.operations` must not be negative, got -1"),
        ({"magnitude": 11.0}, r"`augment.magnitude` must lie in \[0, 10\], got 11"),
        ({"mixup": -0.1}, "`augment.mixup` must not be negative, got -0.1"),
        ({"erasing": 1.5}, r"`augment.erasing` must lie in \[0, 1\], got 1.5"),
        ({"mix_probability": 2.0}, "`augment.mix_probability` must lie"),
        ({"repeats": 0}, "`augment.repeats` must be at least 1, got 0"),
        ({"cutmix": float("nan")}, "`augment.cutmix` must be a finite number"),
    ],
)
def test_impossible_augmentation_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AugmentConfig(**options)


def test_only_mixup_and_cutmix_mix() -> None:
    assert PAPER_AUGMENT.is_mixing
    assert not NO_AUGMENT.is_mixing
    assert not AugmentConfig(mixup=0.8, mix_probability=0.0).is_mixing
    assert not AugmentConfig().is_mixing
