"""Plain ViTs as other software saves them: MAE, DINO, DeiT, timm's, transformers'. Referees: timm, transformers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beitkit.configs.data import IMAGENET, INCEPTION
from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.interop.save import convert, save

EXACT = {"rtol": 0, "atol": 1e-5}
SIZES = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 1, "mlp_ratio": 2.0, "num_classes": 5}
pytestmark = pytest.mark.usefixtures("without_gradients")


def randomized(model: Any) -> Any:
    """Every tensor random, so that no two are alike; biases far from zero, that of the keys included."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator).mul_(0.2))
        if "norm" in name and name.endswith("weight"):
            tensor.abs_().add_(0.5)
    return model.eval()


@pytest.fixture
def vit(timm_library: Any) -> Any:
    """A random ViT of timm; heads are 64 wide, as a file without a config is taken to be."""
    return lambda **options: randomized(timm_library.models.VisionTransformer(**{**SIZES, **options}))


def file_of(state: dict[str, Tensor], path: Path, key: str = "model") -> Path:
    torch.save({key: {name: tensor.clone() for name, tensor in state.items()}}, path)
    return path


def folder_of(model: Any, path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224", "pretrained_cfg": {}, **config}))
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"init_values": 0.1},
        {"no_embed_class": True},
        {"img_size": (48, 80), "global_pool": "avg"},
        {"scale_attn_norm": True, "scale_mlp_norm": True, "global_pool": "avg"},
    ],
    ids=["token", "avg", "LayerScale", "no position of the class token", "rectangle", "BEiT-3"],
)
def test_classifiers_of_timm(options: Any, vit: Any, timm_library: Any, tmp_path: Path, random_images: Any) -> None:
    if "scale_attn_norm" in options:
        options = options | {"norm_layer": partial(timm_library.layers.LayerNorm, eps=1e-5)}
    theirs = vit(**options)
    size = options.get("img_size", (64, 64))
    path = folder_of(theirs, tmp_path / "in", global_pool=theirs.global_pool, model_args={"img_size": size})
    ours, images = load(path), random_images(2, 3, *size)
    torch.testing.assert_close(ours(images), theirs(images), **EXACT)
    assert ours.config.backbone.key_bias
    assert ours.config.pooling == ("mean" if theirs.global_pool == "avg" else "cls")
    for tapped, block in zip(ours.backbone.intermediates(images, range(3)), range(3), strict=True):
        (patches, cls), *_ = theirs.forward_intermediates(images, [block], True, intermediates_only=True, output_fmt="NLC")
        torch.testing.assert_close(tapped.patches, patches, **EXACT)
        torch.testing.assert_close(tapped.cls, cls[:, 0], **EXACT)


def test_the_key_bias_is_kept_and_cancels(vit: Any, tmp_path: Path, random_images: Any) -> None:
    """To the last rounding; so nothing but the file shows whether it was read."""
    theirs, images = vit(), random_images(2, 3, 64, 64)
    ours = load(file_of(theirs.state_dict(), tmp_path / "deit_small.pth"))
    attention = ours.backbone.blocks[0].attn
    assert torch.equal(attention.qkv.bias, theirs.blocks[0].attn.qkv.bias)
    before = ours(images)
    attention.qkv.bias[64:128] = 7.0
    torch.testing.assert_close(ours(images), before, **EXACT)
    attention.qkv.bias[:64] = 7.0
    assert (ours(images) - before).abs().max() > 1e-3


def test_mae_with_and_without_its_decoder(vit: Any, tmp_path: Path, random_images: Any) -> None:
    theirs, images = vit(num_classes=0), random_images(2, 3, 64, 64)
    decoder = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.bias", "decoder_pred.bias")
    encoder = file_of(theirs.state_dict(), tmp_path / "mae_pretrain_vit_base.pth")
    whole = file_of(theirs.state_dict() | dict.fromkeys(decoder, torch.ones(3)), tmp_path / "mae_visualize_vit_base.pth")
    for path in (encoder, whole):
        ours = load(path)
        features, expected = ours(images), theirs.forward_features(images)
        torch.testing.assert_close(features.patches, expected[:, 1:], **EXACT)
        torch.testing.assert_close(features.cls, expected[:, 0], **EXACT)
        assert ours.config.preprocessing == IMAGENET
    dropped = {record.name: record.reason for record in ours.load_report.records if record.fate == "dropped"}
    assert set(dropped) == set(decoder)
    assert dropped["decoder_pred.bias"] == "the decoder of MAE's pre-training, not the network"


def test_dino_after_and_within_a_run(vit: Any, tmp_path: Path, random_images: Any) -> None:
    theirs, images = vit(num_classes=0), random_images(2, 3, 64, 64)
    state = theirs.state_dict()
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
    teacher |= {"head.mlp.0.weight": torch.ones(3), "head.last_layer.weight_g": torch.ones(3)}
    student = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in teacher.items()}
    torch.save(state, tmp_path / "dino_vitbase16_pretrain.pth")
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "checkpoint.pth")
    for name in ("dino_vitbase16_pretrain.pth", "checkpoint.pth"):
        features = load(tmp_path / name)(images)
        torch.testing.assert_close(features.cls, theirs.forward_features(images)[:, 0], **EXACT)


def test_a_plain_vit_starts_other_tasks(vit: Any, tmp_path: Path, random_images: Any) -> None:
    """By the rules for bare backbones; a classifier reads what the network gives before its last norm."""
    theirs = vit(num_classes=0, depth=4)
    path = file_of(theirs.state_dict(), tmp_path / "mae.pth")
    images = random_images(2, 3, 64, 64)
    before = theirs.forward_intermediates(images, [3], intermediates_only=True, output_fmt="NLC")[0]
    for task in ("classify", "segment"):
        ours = load(path, task=task, num_classes=2)
        torch.testing.assert_close(ours.backbone(images).patches, before, **EXACT)
        assert ours.config.backbone.key_bias
    assert load(path, image_size=96).backbone.pos_embed.shape == (1, 37, 64)


@pytest.mark.parametrize(
    ("name", "shape"), [("dist_token", (1, 1, 64)), ("reg_token", (1, 4, 64)), ("register_tokens", (1, 4, 64))]
)
def test_other_tokens_are_refused(name: str, shape: tuple[int, ...], vit: Any, tmp_path: Path) -> None:
    path = file_of(vit().state_dict() | {name: torch.ones(shape)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=f"the network has {name} beside the class token"):
        load(path)


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg"}, "pools by 'avg' with a norm before pooling"),
        ({"global_pool": "max"}, {"global_pool": "max"}, "pools by 'max' with a norm after pooling"),
        ({"pre_norm": True}, {}, "does not know 2 tensors: norm_pre.weight, norm_pre.bias"),
        ({"qk_norm": True}, {}, "tensors: blocks.0.attn.q_norm.weight"),
        ({}, {"architecture": "vit_base_patch16_clip_quickgelu_224"}, "the activation 'quick_gelu'"),
        ({"class_token": False, "global_pool": "avg"}, {}, "it has no cls_token"),
    ],
)
def test_what_is_no_such_network_is_refused(options: Any, config: Any, message: str, vit: Any, tmp_path: Path) -> None:
    path = folder_of(vit(**options), tmp_path / "in", **config)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
