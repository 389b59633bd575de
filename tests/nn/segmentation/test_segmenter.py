"""UPerNet on BEiT: golden vectors of the official code, published sizes, sizes of levels, gradients, wrong use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import IMAGENET
from beitkit.configs.model import BackboneConfig, SegmenterConfig
from beitkit.configs.segmentation import default_palette
from beitkit.errors import UserError
from beitkit.nn.segmentation.heads import ConvModule, resize
from beitkit.nn.segmentation.segmenter import Segmenter

CLASSES = tuple("abcdefg")


def small(image: int = 64, patch: int = 16, depth: int = 4, **options: Any) -> SegmenterConfig:
    backbone = BackboneConfig(
        width=24,
        depth=depth,
        heads=4,
        hidden=96,
        image_size=(image, image),
        patch=(patch, patch),
        relative_positions="per_block",
        final_norm=False,
    )
    return SegmenterConfig(**{"backbone": backbone, "classes": CLASSES, "channels": 16, "auxiliary_channels": 8, **options})


def summary(values: Tensor) -> tuple[float, float]:
    return float(values.sum()), float(values.abs().sum())


@torch.no_grad()
def test_golden_h(golden_fill: Callable[..., Segmenter], golden_input: Callable[..., Tensor]) -> None:
    official = {"pyramid.": "backbone.", "backbone.": "backbone."}
    model = golden_fill(Segmenter(small()), official, raised=("bn.weight", "running_var", "backbone.fpn1.1.weight"))
    assert len([name for name in model.state_dict() if "num_batches" not in name]) == 146
    images = golden_input(1, 3, 64, 64)
    levels = model.features(images)
    assert [tuple(level.shape) for level in levels] == [(1, 24, 16, 16), (1, 24, 8, 8), (1, 24, 4, 4), (1, 24, 2, 2)]
    assert summary(levels[0]) == pytest.approx((-72.67169774, 935.53307495), rel=1e-6)
    assert levels[0].flatten()[:2].tolist() == pytest.approx([0.2140596, 0.24278905], rel=1e-6)
    assert summary(levels[1]) == pytest.approx((-129.76821162, 1737.53698741), rel=1e-6)
    assert float(levels[2].sum()) == pytest.approx(39.59001431, rel=1e-6)
    assert float(levels[3].sum()) == pytest.approx(21.64599553, rel=1e-6)
    logits = model.training_logits(images)
    assert logits.main.shape == (1, 7, 16, 16)
    assert summary(logits.main) == pytest.approx((-1702.27476914, 1738.77832079), rel=1e-6)
    first = [0.13767136, 0.10736991, 0.02404344, 0.0680086, 0.09288201, 0.11463839]
    assert logits.main.flatten()[:6].tolist() == pytest.approx(first, rel=1e-5)
    assert logits.auxiliary is not None
    assert logits.auxiliary.shape == (1, 7, 4, 4)
    assert summary(logits.auxiliary) == pytest.approx((18.64235174, 32.62623239), rel=1e-6)
    # The official training loss, a mean over all pixels, ignored ones among them.
    labels = (torch.arange(64 * 64) % 9).view(1, 64, 64)
    labels[labels >= 7] = 255
    for part, weight, expected in ((logits.main, 1.0, 1.5915921), (logits.auxiliary, 0.4, 0.6178013379)):
        loss = nn.functional.cross_entropy(resize(part, (64, 64)), labels, ignore_index=255, reduction="none").mean()
        assert weight * float(loss) == pytest.approx(expected, rel=1e-6)
    accuracy = 100 * (model(images).argmax(1) == labels).double().mean()
    assert float(accuracy) == pytest.approx(10.9130859375)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "image", "channels", "backbone", "decode", "auxiliary"),
    [
        ("base/16", 640, 768, 93_635_904, 67_963_542, 1_808_534),
        ("base/16", 512, 768, 163_080_812 - 67_963_542 - 1_808_534, 67_963_542, 1_808_534),
        ("large/16", 640, 1024, 318_108_160, 120_764_566, 2_398_358),
    ],
)
def test_published_parameter_counts(size: str, image: int, channels: int, backbone: int, decode: int, auxiliary: int) -> None:
    config = BackboneConfig.named(size, image_size=image, relative_positions="per_block", final_norm=False)
    classes = tuple(map(str, range(150)))
    with torch.device("meta"):
        model = Segmenter(SegmenterConfig(backbone=config, classes=classes, channels=channels))
    assert count(model.backbone) + count(model.pyramid) == backbone
    assert count(model.decode_head) == decode
    assert model.auxiliary_head is not None
    assert count(model.auxiliary_head) == auxiliary


@pytest.mark.parametrize(
    ("depth", "taps"),
    [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (4, (0, 1, 2, 3)), (5, (0, 1, 3, 4)), (7, (1, 2, 4, 6)), (32, (9, 15, 21, 31))],
)
def test_rule_for_the_tapped_blocks(depth: int, taps: tuple[int, ...]) -> None:
    assert small(depth=depth).tapped_blocks == taps


def test_taps_are_raw_blocks_in_raster_order() -> None:
    model = Segmenter(small(depth=6, taps=(0, 2, 3, 5))).eval()
    images = torch.randn(1, 3, 64, 64)
    level = model.features(images)[2]
    (block,) = model.backbone.intermediates(images, [3])
    assert torch.equal(level[0, :, 1, 2], block.patches[0, 4 * 1 + 2])


@pytest.mark.parametrize(("patch", "sides"), [(16, [16, 8, 4, 2]), (8, [16, 8, 4, 2]), (14, [20, 10, 5, 2]), (4, [32, 16, 8, 4])])
def test_levels_of_other_patches(patch: int, sides: list[int]) -> None:
    image = {16: 64, 8: 64, 14: 70, 4: 64}[patch]
    model = Segmenter(small(image=image, patch=patch)).eval()
    images = torch.randn(1, 3, image, image)
    assert [level.shape[-1] for level in model.features(images)] == sides
    assert model(images).shape == (1, 7, image, image)


def test_levels_of_patches_of_8_pixels_are_made_the_official_way() -> None:
    model = Segmenter(small(patch=8))
    assert [name for name, _ in model.pyramid.named_parameters()] == ["fpn1.0.weight", "fpn1.0.bias"]
    maps = [torch.randn(1, 24, 8, 8) for _ in range(4)]
    levels = model.pyramid(maps)
    assert torch.equal(levels[1], maps[1])
    assert torch.equal(levels[2], nn.functional.max_pool2d(maps[2], 2))
    assert torch.equal(levels[3], nn.functional.max_pool2d(maps[3], 4))


def test_rectangles_and_other_channels() -> None:
    backbone = BackboneConfig(
        width=24,
        depth=4,
        heads=4,
        hidden=48,
        image_size=(64, 96),
        patch=(16, 16),
        channels=1,
        relative_positions="per_block",
        final_norm=False,
    )
    model = Segmenter(small(backbone=backbone, auxiliary_channels=None)).eval()
    images = torch.randn(2, 1, 64, 96)
    assert model(images).shape == (2, 7, 64, 96)
    assert model.training_logits(images).auxiliary is None


@torch.no_grad()
def test_prediction_is_the_decoder_at_input_size() -> None:
    model = Segmenter(small()).eval()
    images = torch.randn(2, 3, 64, 64)
    main = model.training_logits(images).main
    expected = nn.functional.interpolate(main, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(images), expected)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = Segmenter(small()).train()
    logits = model.training_logits(torch.randn(2, 3, 64, 64))
    assert logits.auxiliary is not None
    (
        (logits.main * torch.randn_like(logits.main)).sum() + (logits.auxiliary * torch.randn_like(logits.auxiliary)).sum()
    ).backward()
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert not unreached


@torch.no_grad()
def test_heads_start_like_the_official_ones() -> None:
    torch.manual_seed(0)
    model = Segmenter(small(channels=64))
    assert float(model.decode_head.conv_seg.weight.std()) == pytest.approx(0.01, rel=0.15)
    assert model.decode_head.conv_seg.bias is not None
    assert not model.decode_head.conv_seg.bias.any()
    fused = model.decode_head.fpn_bottleneck
    # Kaiming normal over outputs, ReLU: deviation sqrt(2 / (64 * 3 * 3)).
    assert float(fused.conv.weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert fused.conv.bias is None
    assert (fused.bn.eps, fused.bn.momentum) == (1e-5, 0.1)


def test_convolution_module_ends_in_a_relu() -> None:
    module = ConvModule(3, 5, 3).eval()
    x = torch.randn(1, 3, 6, 6)
    # Fresh running statistics are mean 0, variance 1.
    torch.testing.assert_close(module(x), (module.conv(x) / (1 + 1e-5) ** 0.5).clamp(min=0))


def test_layers_and_decay() -> None:
    model = Segmenter(small())
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["backbone.cls_token"] == 0
    assert layers["backbone.blocks.3.gamma_1"] == 4
    outside = {name for name in layers if not name.startswith("backbone.")}
    assert {name.split(".")[0] for name in outside} == {"pyramid", "decode_head", "auxiliary_head"}
    assert {layers[name] for name in outside} == {5}
    assert {name for name in layers if model.no_decay(name)} == {"backbone.cls_token"}


HEADS: dict[str, dict[str, Any]] = {
    "linear": {"channels": None, "auxiliary_channels": None},
    "setr_pup": {},
}


@torch.no_grad()
def test_a_linear_head_is_batch_norm_and_a_matrix_on_the_last_tap() -> None:
    model = Segmenter(small(depth=6, head="linear", taps=(0, 1, 2, 4), **HEADS["linear"])).eval()
    images = torch.randn(2, 3, 64, 64)
    assert model.pyramid is None
    (tap,) = model.backbone.intermediates(images, [4])
    head = model.decode_head
    assert count(head) == 2 * 24 + 24 * 7 + 7
    normal = tap.patches / (1 + 1e-5) ** 0.5  # fresh running statistics
    expected = normal @ head.conv_seg.weight.flatten(1).T + head.conv_seg.bias  # (b, n, classes)
    torch.testing.assert_close(model.coarse_logits(images).flatten(2).transpose(1, 2), expected)


@torch.no_grad()
def test_setr_pup_doubles_the_last_tap_four_times() -> None:
    model = Segmenter(small(depth=6, head="setr_pup", channels=None)).eval()
    assert model.config.decoder_channels == 256
    images = torch.randn(1, 3, 64, 64)
    head, x = model.decode_head, model.features(images)[-1]
    assert count(head) == 9 * 256 * (24 + 3 * 256) + 4 * 2 * 256 + 256 * 7 + 7
    for step in head.up_convs:
        x = nn.functional.conv2d(x, step.conv.weight, padding=1) / (1 + 1e-5) ** 0.5
        x = nn.functional.interpolate(x.clamp(min=0), scale_factor=2, mode="bilinear", align_corners=False)
    assert x.shape == (1, 256, 64, 64)
    expected = torch.einsum("bchw,vc->bvhw", x, head.conv_seg.weight[:, :, 0, 0])
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    auxiliary = model.training_logits(images).auxiliary
    assert auxiliary is not None
    assert model.auxiliary_head is not None
    third = model.backbone.intermediates(images, [3])[0].patches.transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(auxiliary, model.auxiliary_head([third] * 4))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("image", [(16, 16), (48, 32)])
def test_other_heads_take_any_grid_and_reach_every_parameter(head: str, image: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone = replace(small().backbone, image_size=image)
    model = Segmenter(small(backbone=backbone, head=head, **HEADS[head])).train()
    images = torch.randn(2, 3, *image)
    assert model(images).shape == (2, 7, *image)
    logits = model.training_logits(images)
    loss = sum((part * torch.randn_like(part)).sum() for part in logits if part is not None)
    assert isinstance(loss, Tensor)
    loss.backward()
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    # A single patch has no offset to another one, and attends to itself and to the class token alone.
    assert image == (16, 16) or not unreached


def test_widths_that_are_left_open() -> None:
    assert small(channels=None).decoder_channels == 24
    assert small(channels=None, head="setr_pup").decoder_channels == 256
    assert small(channels=40, head="setr_pup").decoder_channels == 40


def test_config_survives_json() -> None:
    config = small(taps=(0, 1, 2, 3), palette=tuple((index, 0, 255) for index in range(7)))
    assert from_json(SegmenterConfig, to_json(config)) == config
    assert config.preprocessing == IMAGENET


def test_classes_have_the_colors_of_the_palette_or_made_up_ones() -> None:
    palette = tuple((index, 0, 255) for index in range(7))
    assert small(palette=palette).colors == palette
    assert small().colors == default_palette(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "at least 4 blocks, got 3"),
        ({"taps": (0, 1, 2, 4)}, r"numbered 0 to 3, got \(0, 1, 2, 4\)"),
        ({"taps": (0, 1, 1, 3)}, "4 different blocks"),
        ({"taps": (2, 1, 0, 3)}, "ascending order"),
        ({"classes": ()}, "`classes` must name at least 1, got none"),
        ({"palette": ((0, 0, 0),)}, "one color for each of the 7 classes, got 1"),
        ({"channels": 0}, "`channels` must be at least 1, got 0"),
        ({"auxiliary_channels": 0}, "`auxiliary_channels` must be at least 1, got 0"),
        ({"classes": tuple(map(str, range(256)))}, "at most 255 classes, got 256"),
        ({"head": "linear", "auxiliary_channels": None}, "leave `channels` at None"),
        ({"head": "linear", "channels": None}, "set `auxiliary_channels` to None"),
        ({"image": 16}, "at least 2x2 patches, got 1x1"),
        ({"image": 24, "patch": 8}, "at least 4x4 patches, got 3x3"),
        ({"backbone": BackboneConfig.named("nano/16")}, "final_norm=False"),
    ],
)
def test_wrong_use_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        small(**options)
    assert "\n" not in str(raised.value)
