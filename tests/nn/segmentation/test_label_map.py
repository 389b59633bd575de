"""Label maps of whole images against the plain formula of each mode, at any size and aspect, in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import beitkit.nn.segmentation.enlarged as enlarged_module
import beitkit.nn.segmentation.label_map as module
from beitkit.configs.codec import from_json, to_json
from beitkit.configs.model import BackboneConfig, SegmenterConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.errors import UserError
from beitkit.nn.segmentation.label_map import predict_label_map, predict_scene
from beitkit.nn.segmentation.segmenter import Segmenter

OFFICIAL_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of the official multi-scale evaluation, each with and without a flip (method 7.5)."""


def network(size: tuple[int, int] = (16, 16), channels: int = 3) -> Segmenter:
    """In float64, so that no two ways to the same number differ in which class is largest."""
    torch.manual_seed(0)
    backbone = BackboneConfig(
        width=12,
        depth=4,
        heads=2,
        hidden=24,
        image_size=size,
        patch=(4, 4),
        channels=channels,
        relative_positions="per_block",
        final_norm=False,
    )
    model = Segmenter(SegmenterConfig(backbone=backbone, classes=tuple("abcde"), head="setr_pup", channels=8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def noise_image(height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth, so that there are regions."""
    noise = torch.rand(1, channels, 4, 5, generator=torch.Generator().manual_seed(height * 1000 + width))
    return F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1).mul(255).round()[0].to(torch.uint8)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


@torch.no_grad()
def slid(model: Segmenter, image: Tensor, stride: int) -> Tensor:
    """Averaged logits (classes, h, w) of the official sliding, everything in memory."""
    window = model.config.backbone.image_size
    pixels = model.config.preprocessing
    mean, std = torch.tensor(pixels.mean).double()[:, None, None], torch.tensor(pixels.std).double()[:, None, None]
    if len(image) == 1:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    height, width = image.shape[1:]
    padded = F.pad((image.double() / 255 - mean) / std, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    total, count = torch.zeros(5, *padded.shape[1:], dtype=torch.float64), torch.zeros(padded.shape[1:])
    for top in range(0, max(padded.shape[1] - window[0] + stride - 1, 0) // stride * stride + 1, stride):
        for left in range(0, max(padded.shape[2] - window[1] + stride - 1, 0) // stride * stride + 1, stride):
            bottom, right = min(top + window[0], padded.shape[1]), min(left + window[1], padded.shape[2])
            place = slice(bottom - window[0], bottom), slice(right - window[1], right)
            total[:, *place] += model(padded[:, *place][None])[0]
            count[place] += 1
    return (total / count)[:, :height, :width]


def enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several bands even on small images: 20 pixels wide they have about five rows."""
    monkeypatch.setattr(module, "BAND_BYTES", 4 * 5 * 100)
    monkeypatch.setattr(enlarged_module, "BAND_BYTES", 4 * 5 * 1000)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((40, 30), (21, 16)),  # 16 / 30 of it
        ((30, 40), (16, 21)),
        ((16, 16), (16, 16)),
        ((5, 9), (16, 29)),  # enlarged
        ((10, 100), (6, 64)),  # longer than 1 to 4: the long side decides
        ((100, 1), (64, 1)),
        ((1, 1), (16, 16)),
    ],
)
def test_sliding_with_the_official_settings(size: tuple[int, int], shown: tuple[int, int]) -> None:
    model, image = network(), noise_image(*size)
    labels = predict_label_map(model, image)
    assert labels.dtype == torch.uint8
    expected = enlarged(slid(model, resized(image, shown), 10), size).argmax(0)  # 10: two thirds of 16
    assert torch.equal(labels.long(), expected)


def test_the_test_images_have_several_classes() -> None:
    assert len(predict_label_map(network(), noise_image(40, 30)).unique()) >= 3


@pytest.mark.parametrize("config", [InferenceConfig(short_side=30, stride=7), InferenceConfig(short_side=12, window_batch=1)])
def test_another_size_stride_and_batch(config: InferenceConfig) -> None:
    model, image = network(), noise_image(30, 45)
    shown = {30: (30, 45), 12: (12, 18)}[config.short_side or 0]
    expected = enlarged(slid(model, resized(image, shown), config.stride or 10), (30, 45)).argmax(0)
    assert torch.equal(predict_label_map(model, image, config).long(), expected)


def test_whole_is_the_image_squeezed_into_one_window() -> None:
    model, image = network(), noise_image(20, 50)
    scores = slid(model, resized(image, (16, 16)), 16)
    labels = predict_label_map(model, image, InferenceConfig(mode="whole"))
    assert torch.equal(labels.long(), enlarged(scores, (20, 50)).argmax(0))


def test_scales_and_flips_are_averaged_as_probabilities() -> None:
    model, image = network(), noise_image(20, 30)
    total = torch.zeros(5, 20, 30, dtype=torch.float64)
    # The short side is never less than the window's 16; 1.75 times it is 28.
    for shown in ((16, 24), (16, 24), (16, 24), (20, 30), (24, 36), (28, 42)):
        for flip in (False, True):
            image_shown = resized(image, shown)
            scores = slid(model, image_shown.flip(-1) if flip else image_shown, 10)
            probabilities = enlarged(scores, (20, 30)).softmax(0)
            total += probabilities.flip(-1) if flip else probabilities
    config = InferenceConfig(scales=OFFICIAL_SCALES, flip=True)
    assert torch.equal(predict_label_map(model, image, config).long(), total.argmax(0))
    scene = predict_scene(model, image, config)
    assert torch.equal(scene.label_map.long(), total.argmax(0))
    best = total.max(0).values / 12
    for label in range(5):
        found = total.argmax(0) == label
        assert float(scene.area[label]) == pytest.approx(float(found.double().mean()))
        assert float(scene.confidence[label]) == pytest.approx(float(best[found].mean()), nan_ok=True)


def test_confidence_of_one_pass_is_its_softmax() -> None:
    model, image = network(), noise_image(40, 30)
    probabilities = enlarged(slid(model, resized(image, (21, 16)), 10), (40, 30)).softmax(0)
    scene = predict_scene(model, image)
    best, labels = probabilities.max(0)
    assert torch.equal(scene.label_map, predict_label_map(model, image))
    expected = [float(best[labels == label].mean()) for label in range(5)]
    assert scene.confidence.tolist() == pytest.approx(expected, nan_ok=True)
    assert float(scene.area.sum()) == pytest.approx(1)


def test_a_rectangular_network_and_gray_images() -> None:
    model, image = network((16, 24), channels=1), noise_image(32, 40, channels=1)
    expected = enlarged(slid(model, resized(image, (16, 20)), 8), (32, 40)).argmax(0)
    assert torch.equal(predict_label_map(model, image, InferenceConfig(stride=8)).long(), expected)


def test_memory_follows_the_band_and_not_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, largest = network(), 0
    resize = module.resized_rows

    def watched(*arguments: Any) -> Tensor:
        nonlocal largest
        band = resize(*arguments)
        largest = max(largest, band.numel())
        return band

    monkeypatch.setattr(module, "resized_rows", watched)
    assert predict_label_map(model, noise_image(300, 200), InferenceConfig(flip=True)).shape == (300, 200)
    assert 0 < largest <= 5 * 200  # one row, because a band of 500 scores has less than that


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "`inference.stride` must be at least 1, got 0"),
        ({"short_side": -3}, "`inference.short_side` must be at least 1, got -3"),
        ({"window_batch": 0}, "`inference.window_batch` must be at least 1, got 0"),
        ({"scales": ()}, "`inference.scales` must name at least 1, got none"),
        ({"scales": (1.0, -0.5)}, "`inference.scales` must be positive, got 1 -0.5"),
        ({"scales": (float("nan"),)}, "must be a finite number"),
        ({"mode": "whole", "stride": 3}, "`inference.stride` has no meaning with `inference.mode='whole'`"),
        ({"mode": "whole", "scales": (0.5,)}, "`inference.scales` has no meaning"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InferenceConfig(**options)


def test_wrong_use() -> None:
    model = network()
    with pytest.raises(UserError, match="`inference.stride` 17 is larger than the network's windows of 16x16"):
        predict_label_map(model, noise_image(20, 20), InferenceConfig(stride=17))
    with pytest.raises(
        UserError, match=r"uint8 images of shape \(3, height, width\), or floats in \[0, 1\], got uint8 of shape \(1, 20, 20\)"
    ):
        predict_label_map(model, noise_image(20, 20, channels=1))
    with pytest.raises(UserError, match=r"model.eval\(\)"):
        predict_label_map(model.train(), noise_image(20, 20))


def test_settings_survive_json() -> None:
    config = InferenceConfig(scales=OFFICIAL_SCALES, flip=True, stride=5)
    assert from_json(InferenceConfig, to_json(config)) == config


@pytest.mark.parametrize("predict", [predict_label_map, predict_scene])
def test_scores_that_are_not_finite_are_refused(predict: Any) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("backbone.blocks.1.norm1.bias")[0] = float("nan")
    with pytest.raises(UserError, match=r"outputs of the network are not finite .* 1 of 1 images"):
        predict(model, noise_image(20, 30))
