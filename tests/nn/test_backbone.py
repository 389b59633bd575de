"""The questionnaire: shapes, gradients, masks, initialization, layers and published sizes of every backbone variant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from beitkit.configs.model import BackboneConfig, Pair
from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone

VARIANTS = [
    {
        "relative_positions": relative,
        "absolute_positions": absolute,
        "layer_scale": scale,
        "final_norm": norm,
        "mask_token": token,
    }
    for relative, absolute, scale, norm, token in itertools.product(
        ("none", "shared", "per_block"), (False, True), (None, 0.1), (False, True), (False, True)
    )
]


def small(**options: object) -> BackboneConfig:
    sizes = {"width": 24, "depth": 3, "heads": 4, "hidden": 96, "image_size": (32, 48), "patch": (16, 16)}
    return BackboneConfig(**{**sizes, **options})  # type: ignore[arg-type]


def name_of(variant: dict[str, object]) -> str:
    return "-".join(str(value) for value in variant.values())


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_every_parameter_gets_a_gradient(variant: dict[str, object]) -> None:
    torch.manual_seed(0)
    backbone = Backbone(small(**variant))
    mask = torch.tensor([[True, False, False, True, False, False]] * 2) if variant["mask_token"] else None
    features = backbone(torch.randn(2, 3, 32, 48), mask)
    assert features.cls.shape == (2, 24)
    assert features.patches.shape == (2, 6, 24)
    assert features.grid == (2, 3)
    (features.cls.square() * torch.rand(24)).sum().add((features.patches * torch.randn(6, 24)).sum()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("image", "patch", "channels"),
    [((32, 48), (16, 16), 1), ((20, 60), (10, 12), 5), ((8, 12), (4, 2), 3), ((16, 16), (16, 16), 2)],
)
def test_any_rectangle_patch_and_channel_count(image: Pair, patch: Pair, channels: int) -> None:
    config = small(image_size=image, patch=patch, channels=channels, relative_positions="per_block", absolute_positions=True)
    features = Backbone(config)(torch.randn(2, channels, *image))
    grid = (image[0] // patch[0], image[1] // patch[1])
    assert features.grid == config.grid == grid
    assert features.patches.shape == (2, grid[0] * grid[1], 24)


def test_patches_are_cut_in_raster_order() -> None:
    backbone = Backbone(small(depth=1, relative_positions="none", layer_scale=None, final_norm=False))
    images = torch.randn(1, 3, 32, 48)
    tokens, bias = backbone.embed(images, None)
    weight, offset = backbone.patch_embed.proj.weight.flatten(1), backbone.patch_embed.proj.bias
    for row, column in itertools.product(range(2), range(3)):
        pixels = images[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].flatten()
        torch.testing.assert_close(tokens[0, 1 + 3 * row + column], weight @ pixels + offset, atol=1e-5, rtol=1e-5)
    assert bias is None
    torch.testing.assert_close(tokens[0, 0], backbone.cls_token[0, 0])


def test_mask_replaces_the_masked_patches_before_positions_and_nothing_else() -> None:
    torch.manual_seed(0)
    backbone = Backbone(small(mask_token=True, absolute_positions=True))
    assert backbone.mask_token is not None
    assert backbone.pos_embed is not None
    images, mask = torch.randn(2, 3, 32, 48), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2] = mask[1, 5] = True
    plain, masked = backbone.embed(images, None)[0], backbone.embed(images, mask)[0]
    with_cls = torch.cat((torch.zeros(2, 1, dtype=torch.bool), mask), dim=1)
    assert torch.equal(plain[~with_cls], masked[~with_cls])
    torch.testing.assert_close(masked[0, 3], backbone.mask_token[0, 0] + backbone.pos_embed[0, 3])
    torch.testing.assert_close(masked[1, 6], backbone.mask_token[0, 0] + backbone.pos_embed[0, 6])


def test_what_is_under_a_mask_cannot_be_seen() -> None:
    torch.manual_seed(0)
    backbone = Backbone(small(mask_token=True)).eval()
    images, mask = torch.randn(1, 3, 32, 48), torch.tensor([[False, True, False, False, False, False]])
    scribbled = images.clone()
    scribbled[..., :16, 16:32] = float("nan")
    assert torch.equal(backbone(images, mask).patches, backbone(scribbled, mask).patches)


def test_intermediates_are_raw_block_outputs() -> None:
    torch.manual_seed(0)
    backbone = Backbone(small(final_norm=True)).eval()
    images = torch.randn(2, 3, 32, 48)
    seen: list[Tensor] = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    features = backbone(images)
    first, last = backbone.intermediates(images, [0, 2])
    assert torch.equal(first.patches, seen[0][:, 1:])
    assert torch.equal(last.patches, seen[2][:, 1:])
    assert torch.equal(last.cls, seen[2][:, 0])
    assert isinstance(backbone.norm, nn.LayerNorm)
    torch.testing.assert_close(features.patches, backbone.norm(last.patches))


def test_intermediates_stop_after_the_last_wanted_block() -> None:
    backbone = Backbone(small())
    backbone.blocks[2].register_forward_hook(lambda *_: pytest.fail("block 2 ran"))
    assert len(backbone.intermediates(torch.randn(1, 3, 32, 48), [0, 1])) == 2


def test_drop_path_grows_linearly() -> None:
    rates = [block.drop_path for block in Backbone(small(depth=5, drop_path=0.2)).each_block()]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [block.drop_path for block in Backbone(small(depth=1, drop_path=0.2)).each_block()] == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda backbone: backbone(torch.zeros(1, 3, 48, 32)), r"takes images of shape \(3, 32, 48\), got \(3, 48, 32\)"),
        (lambda backbone: backbone(torch.zeros(1, 1, 32, 48)), r"got \(1, 32, 48\)"),
        (lambda backbone: backbone(torch.zeros(1, 3, 32, 48), torch.zeros(1, 6, dtype=torch.bool)), "without a mask token"),
        (lambda backbone: backbone.intermediates(torch.zeros(1, 3, 32, 48), [3]), "blocks are numbered 0 to 2"),
    ],
)
def test_wrong_use_is_one_clear_line(call: Callable[[Backbone], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        call(Backbone(small()))
    assert "\n" not in str(raised.value)


def parameters_of(config: BackboneConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Backbone(config).parameters())


@pytest.mark.parametrize(
    ("name", "image_size", "count"),
    [
        ("base/16", 224, 85_761_984),
        ("base/16", 384, 85_975_104),
        ("large/16", 224, 303_405_568),
        ("large/16", 384, 303_973_888),
        ("large/16", 512, 304_649_728),
    ],
)
def test_published_parameter_counts(name: str, image_size: int, count: int) -> None:
    config = BackboneConfig.named(name, image_size=image_size, relative_positions="per_block", final_norm=False)
    # The published headless count includes `fc_norm`, which belongs to the classifier here.
    assert parameters_of(config) + 2 * config.width == count


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("base/16", {"absolute_positions": True, "relative_positions": "none", "layer_scale": None}, 86_558_440),
        ("base/16", {"absolute_positions": True, "relative_positions": "none"}, 86_576_872),
        ("base/16", {"relative_positions": "shared"}, 86_434_360),
        ("tiny/16", {"relative_positions": "per_block"}, 5_708_248),
        ("small/16", {"relative_positions": "per_block"}, 22_032_328),
        ("base/16", {"relative_positions": "per_block", "layer_scale": None, "image_size": 256}, 86_545_960),
        ("huge/14", {"relative_positions": "per_block", "layer_scale": None}, 632_169_448),
        ("giant/14", {"relative_positions": "per_block", "layer_scale": None}, 1_012_810_216),
    ],
)
def test_published_parameter_counts_with_1000_classes(name: str, options: dict[str, object], count: int) -> None:
    config = BackboneConfig.named(name, final_norm=False, **options)  # type: ignore[arg-type]
    assert parameters_of(config) + 2 * config.width + 1000 * (config.width + 1) == count


def standardized(weight: Tensor, std: float) -> tuple[float, float]:
    """Mean and deviation of the entries, in expected standard errors from 0 and from `std`."""
    count = weight.numel()
    return float(weight.mean()) / (std / math.sqrt(count)), (float(weight.std()) - std) / (std / math.sqrt(2 * count))


@pytest.mark.parametrize("pretrain", [False, True])
def test_initialization_follows_the_table(pretrain: bool) -> None:
    torch.manual_seed(0)
    options = {
        "width": 96,
        "hidden": 384,
        "absolute_positions": True,
        "mask_token": True,
        "layer_scale": 1e-5,
        "image_size": (224, 224),
    }
    backbone = Backbone(small(pretrain_init=pretrain, relative_positions="shared", **options))
    # A normal of deviation 0.02 cut at one deviation has a deviation of 0.02 * 0.5396.
    std = 0.02 * 0.53956 if pretrain else 0.02

    def assert_normal(weight: Tensor, divisor: float = 1.0) -> None:
        mean, spread = standardized(weight.detach() * divisor, std)
        assert abs(mean) < 5
        assert abs(spread) < 5
        largest = float(weight.detach().abs().max()) * divisor
        assert largest <= 0.02 * (1 + 1e-6) if pretrain else largest > 0.045

    for index, block in enumerate(backbone.each_block()):
        assert_normal(block.attn.qkv.weight)
        assert_normal(block.mlp.fc1.weight)
        assert_normal(block.attn.proj.weight, math.sqrt(2 * (index + 1)))
        assert_normal(block.mlp.fc2.weight, math.sqrt(2 * (index + 1)))
        for zeros in (block.attn.q_bias, block.attn.v_bias, block.attn.proj.bias, block.mlp.fc1.bias, block.mlp.fc2.bias):
            assert not zeros.any()
        for scale in (block.gamma_1, block.gamma_2):
            assert scale is not None
            assert (scale == 1e-5).all()
        for norm in (block.norm1, block.norm2):
            assert (norm.weight == 1).all()
            assert not norm.bias.any()
            assert norm.eps == 1e-6
    assert backbone.pos_embed is not None
    assert_normal(backbone.pos_embed)
    for token in (backbone.cls_token, backbone.mask_token):
        assert token is not None
        assert token.std() > 0.3 * std
        assert token.abs().max() <= (0.02 * (1 + 1e-6) if pretrain else 0.1)
    assert backbone.rel_pos_bias is not None
    assert not backbone.rel_pos_bias.relative_position_bias_table.any()
    weight, bias = backbone.patch_embed.proj.weight, backbone.patch_embed.proj.bias
    assert bias is not None
    if pretrain:
        assert_normal(weight)
        assert not bias.any()
    else:
        # PyTorch's default: both uniform within 1 / sqrt(inputs).
        bound = 1 / math.sqrt(3 * 16 * 16)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert standardized(weight.detach(), bound / math.sqrt(3))[1] < 5
        assert 0 < bias.abs().max() <= bound


@pytest.mark.parametrize("variant", [VARIANTS[-1], {**VARIANTS[-1], "relative_positions": "shared"}], ids=name_of)
def test_every_parameter_has_a_layer_and_decay(variant: dict[str, object]) -> None:
    backbone = Backbone(small(**variant))
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    lowest = {"cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name, layer in layers.items() if layer == 0} == lowest
    for index in range(3):
        of_block = {name for name, layer in layers.items() if layer == index + 1}
        assert of_block == {name for name in layers if name.startswith(f"blocks.{index}.")}
    rest = {name for name in layers if name not in lowest and not name.startswith("blocks.")}
    assert rest >= {"norm.weight", "norm.bias"}
    assert all(layers[name] == 4 for name in rest)
    assert {name for name in layers if backbone.no_decay(name)} == {"cls_token", "pos_embed"}


def test_state_dict_has_the_official_names() -> None:
    shared = Backbone(small(mask_token=True, depth=1))
    assert sorted(shared.state_dict()) == sorted(
        ["cls_token", "mask_token", "norm.bias", "norm.weight", "patch_embed.proj.bias", "patch_embed.proj.weight"]
        + ["rel_pos_bias.relative_position_bias_table"]
        + [f"blocks.0.{part}" for part in ("gamma_1", "gamma_2", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")]
        + [f"blocks.0.attn.{part}" for part in ("q_bias", "v_bias", "qkv.weight", "proj.weight", "proj.bias")]
        + [f"blocks.0.mlp.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
    )
    per_block = Backbone(replace(shared.config, relative_positions="per_block"))
    assert set(per_block.state_dict()) - set(shared.state_dict()) == {"blocks.0.attn.relative_position_bias_table"}


@torch.no_grad()
def officially(backbone: Backbone, images: Tensor, mask: Tensor | None) -> tuple[Tensor, list[torch.dtype]]:
    """The official code's way from images to the last block, and the types of the tokens on it; attention and MLP are ours."""
    x = backbone.patch_embed(images)
    if mask is not None:
        assert backbone.mask_token is not None
        hidden = mask.unsqueeze(-1).type_as(backbone.mask_token)
        x = x * (1 - hidden) + backbone.mask_token * hidden
    x = torch.cat((backbone.cls_token.expand(len(x), -1, -1), x), dim=1)
    if backbone.pos_embed is not None:
        x = x + backbone.pos_embed
    bias, types = None if backbone.rel_pos_bias is None else backbone.rel_pos_bias(), [x.dtype]
    for block in backbone.each_block():
        attended = block.attn(block.norm1(x), bias)
        x = x + (attended if block.gamma_1 is None else block.gamma_1 * attended)
        changed = block.mlp(block.norm2(x))
        x = x + (changed if block.gamma_2 is None else block.gamma_2 * changed)
        types.append(x.dtype)
    return x if backbone.norm is None else backbone.norm(x), types


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("precision", [torch.bfloat16, None], ids=str)
def test_the_residual_stream_is_float32(variant: dict[str, object], precision: torch.dtype | None) -> None:
    """Under autocast as without, whatever the options; and the features are those of the official way, bit for bit."""
    torch.manual_seed(0)
    backbone = Backbone(small(**variant)).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    types: list[torch.dtype] = []
    for block in backbone.each_block():
        block.register_forward_hook(lambda _, given, made: types.extend((given[0].dtype, made.dtype)))
    images = torch.randn(2, 3, 32, 48)
    mask = torch.tensor([[True, False, False, True, False, False]] * 2) if variant["mask_token"] else None
    with torch.no_grad(), torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        features = backbone(images, mask)
        expected, official_types = officially(backbone, images, mask)
        assert backbone.patch_embed(images).dtype == (precision or torch.float32)
    assert set(types) == set(official_types) == {torch.float32}
    assert torch.equal(torch.cat((features.cls.unsqueeze(1), features.patches), dim=1), expected)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_the_residual_stream_of_training_is_float32(drop_path: float) -> None:
    backbone = Backbone(small(relative_positions="shared", layer_scale=None, drop_path=drop_path)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, bias = backbone.embed(torch.randn(2, 3, 32, 48), None)
        assert backbone.run_blocks(x, bias, range(3)).dtype == x.dtype == torch.float32
