"""There and back in every format, tensor by tensor; conversions without a network; official files and their golden vectors."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from beitkit.configs.data import IMAGENET, INCEPTION
from beitkit.configs.model import BackboneConfig, ClassifierConfig, ClsBranchConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.errors import UserError
from beitkit.interop.inspect import inspect_checkpoint
from beitkit.interop.load import load
from beitkit.interop.save import convert, save
from beitkit.nn.models import MaskedImageModel
from beitkit.nn.position import relative_position_index
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.tokenizers.dvae import DiscreteVAE


def place(folder: Path, file_format: str) -> Path:
    return folder / ("out.pth" if file_format == "microsoft" else f"out-{file_format}")


def strip_branch(model: MaskedImageModel) -> MaskedImageModel:
    """The network without what only pre-training uses."""
    bare = MaskedImageModel(replace(model.config, cls_branch=None))
    bare.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if not name.startswith("cls_branch.")})
    return bare


@pytest.mark.parametrize("file_format", ["native", "microsoft", "huggingface", "timm"])
def test_calibrated_probabilities_are_kept_in_every_format(
    file_format: Any, network: Any, tmp_path: Path, random_images: Any
) -> None:
    model = network("classify")
    model.config = replace(model.config, multilabel=True, temperature=1.5, thresholds=(0.2, 0.5, 0.7))
    path = place(tmp_path, file_format)
    report = save(model, path, format=file_format)
    again: Any = load(path)
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = model.probabilities(model(images)), again.probabilities(again(images))
        assert not torch.allclose(model(images).sigmoid(), expected, atol=1e-3)
    assert torch.allclose(expected, found, atol=1e-6)
    assert again.config.thresholds == (model.config.thresholds if file_format in ("native", "microsoft") else None)
    assert again.config.temperature == (1.5 if file_format == "native" else 1.0)
    assert any("1.5 is divided into the head" in note for note in report.notes) == (file_format != "native")
    if file_format == "native":
        lines = dict(inspect_checkpoint(path).lines())
        assert lines["calibrated"] == "temperature 1.5, thresholds 0.2 to 0.7"


@pytest.mark.parametrize("file_format", ["native", "microsoft", "huggingface", "timm"])
def test_there_and_back(file_format: Any, any_network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]) -> None:
    path = place(tmp_path, file_format)
    config = any_network.config
    is_too_narrow = isinstance(config, SegmenterConfig) and config.channels != config.backbone.width
    if file_format in ("microsoft", "huggingface") and isinstance(config, SegmenterConfig) and config.head != "uper":
        with pytest.raises(UserError, match=rf"UPerNet only, this network has the head {config.head}; use native"):
            save(any_network, path, format=file_format)
        assert not path.exists()
        return
    if (file_format == "timm" and not isinstance(config, ClassifierConfig)) or (file_format == "huggingface" and is_too_narrow):
        with pytest.raises(UserError, match="use microsoft"):
            save(any_network, path, format=file_format)
        assert not path.exists()
        return
    report = save(any_network, path, format=file_format)
    if file_format == "huggingface" and isinstance(config, MaskedImageModelConfig) and config.cls_branch is not None:
        assert report.counts()["dropped"] == len([name for name in any_network.state_dict() if name.startswith("cls_branch.")])
        any_network = strip_branch(any_network)
    again: Any = load(path)
    assert_same_tensors(again, any_network)
    before, after = any_network.config, again.config
    assert after.preprocessing == before.preprocessing
    if file_format in ("native", "microsoft"):
        assert after == before
    elif not isinstance(before, MaskedImageModelConfig):
        assert after.classes == before.classes
        assert after.backbone == before.backbone
    convert(path, "native", tmp_path / "converted")
    assert_same_tensors(load(tmp_path / "converted"), any_network)


def test_a_dry_run_writes_nothing_and_tells_everything(network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path / "in", format="native")
    report = convert(tmp_path / "in", "huggingface", tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert report.counts() == {"kept": 8 * 15 + 7, "split": 24}
    assert report == convert(tmp_path / "in", "huggingface", tmp_path / "out")
    assert {source for record in report.records for source in record.sources} == set(network("classify").state_dict())


def test_the_official_file(network: Any, tmp_path: Path) -> None:
    """Any PyTorch reads it safely, and the official code finds in it what it looks for."""
    save(network("classify"), tmp_path / "x.pth", format="microsoft")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    state = content["model"]
    assert state["blocks.0.attn.qkv.weight"].shape == (72, 24)
    assert "blocks.0.attn.qkv.bias" not in state
    assert torch.equal(state["blocks.7.attn.relative_position_index"], relative_position_index((4, 4)))
    assert content["args"] == {"imagenet_default_mean_and_std": False}
    save(network("segment"), tmp_path / "s.pth", format="microsoft")
    content = torch.load(tmp_path / "s.pth", weights_only=True)
    assert content["meta"]["CLASSES"] == ["cat", "dog", "fungi ü"]
    assert {"backbone.fpn1.0.weight", "backbone.cls_token", "decode_head.conv_seg.bias"} <= set(content["state_dict"])


def test_wrong_use(network: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a path that ends in \.pth"):
        save(network("classify"), tmp_path / "folder", format="microsoft")
    (tmp_path / "file").write_text("x")
    for file_format in ("native", "huggingface", "timm"):
        with pytest.raises(UserError, match="is a file"):
            save(network("classify"), tmp_path / "file", format=file_format)
    with pytest.raises(UserError, match="a tokenizer can be saved as native only"):
        save(DiscreteVAE(DVAEConfig(vocabulary=8, hidden=8, codebook_dim=8)), tmp_path / "t", format="timm")


# Files as the official code writes them, made from nothing but the official names.


def official_state(model: nn.Module, renamed: dict[str, str], index_places: list[str]) -> dict[str, Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        prefix = next((prefix for prefix in renamed if name.startswith(prefix)), "")
        state[renamed.get(prefix, "") + name.removeprefix(prefix)] = tensor.clone()
    grid = getattr(model, "config").backbone.grid  # noqa: B009
    return state | {f"{where}.relative_position_index": relative_position_index(grid) for where in index_places}


SMALL = BackboneConfig(
    width=24, depth=3, heads=4, hidden=96, image_size=(48, 48), patch=(16, 16), mask_token=True, pretrain_init=True
)


def test_golden_e_from_an_official_file(
    tmp_path: Path, golden_fill: Callable[..., Any], golden_input: Callable[..., Tensor], golden_mask: Tensor
) -> None:
    config = MaskedImageModelConfig(backbone=SMALL, vocabulary=32, cls_branch=ClsBranchConfig(early_layer=2))
    prefixes = {"backbone.": "", "cls_branch.": ""}
    filled = golden_fill(MaskedImageModel(config), prefixes)
    content = {
        "model": {f"module.{name}": tensor for name, tensor in official_state(filled, prefixes, ["rel_pos_bias"]).items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(early_layers=2, head_layers=2, layer_scale_init_value=0.1),
    }
    torch.save(content, tmp_path / "beitv2_small.pth")
    model: Any = load(tmp_path / "beitv2_small.pth")
    assert model.config == replace(config, preprocessing=IMAGENET)
    model.double().requires_grad_(False)
    main, branch = model.both_logits(golden_input(2, 3, 48, 48), golden_mask, golden_mask)
    # float32 on the way: the offsets 1 and 0.5 were added in float64, so the last digits differ.
    assert float(main.sum()) == pytest.approx(1.69885012, rel=1e-4)
    assert float(main.abs().sum()) == pytest.approx(141.85754417, rel=1e-5)
    np.testing.assert_allclose(main.flatten()[:3], [1.50954394, -0.98091639, 0.6260701], rtol=1e-5)
    assert float(branch.abs().sum()) == pytest.approx(111.59878212, rel=1e-5)
    np.testing.assert_allclose(branch.flatten()[:3], [1.13847922, -0.91889104, 0.89104143], rtol=1e-5)


def test_golden_h_from_an_official_file(
    tmp_path: Path, golden_fill: Callable[..., Any], golden_input: Callable[..., Tensor]
) -> None:
    backbone = replace(
        SMALL,
        depth=4,
        image_size=(64, 64),
        relative_positions="per_block",
        mask_token=False,
        final_norm=False,
        pretrain_init=False,
    )
    classes = ("wall", "sky", "c", "d", "e", "f", "g")
    config = SegmenterConfig(backbone=backbone, classes=classes, channels=16, auxiliary_channels=8, taps=(0, 1, 2, 3))
    prefixes = {"backbone.": "backbone.", "pyramid.": "backbone."}
    filled = golden_fill(Segmenter(config), prefixes, raised=("bn.weight", "running_var", "backbone.fpn1.1.weight"))
    state = official_state(filled, prefixes, [f"backbone.blocks.{index}.attn" for index in range(4)])
    torch.save({"state_dict": state, "meta": {"CLASSES": classes, "PALETTE": [[1, 2, 3]] * 7}}, tmp_path / "seg.pth")
    model: Any = load(tmp_path / "seg.pth")
    assert model.config == replace(config, taps=None, palette=((1, 2, 3),) * 7)
    logits = model.double().requires_grad_(False).training_logits(golden_input(1, 3, 64, 64))
    assert float(logits.main.sum()) == pytest.approx(-1702.27476914, rel=1e-5)
    np.testing.assert_allclose(logits.main.flatten()[:3], [0.13767136, 0.10736991, 0.02404344], rtol=1e-4)
    assert float(logits.auxiliary.sum()) == pytest.approx(18.64235174, rel=1e-4)


# What the tensors do not show, and how it is decided.


@pytest.mark.parametrize(
    ("name", "file_name", "options", "expected", "crop"),
    [
        ("masked", "beit_base_patch16_224_pt22k.pth", {}, INCEPTION, 0.875),
        ("masked, absolute", "beit_base_patch16_224_pt1k_800ep.pth", {}, IMAGENET, 0.875),
        ("masked v2", "anything.pth", {}, IMAGENET, 0.875),
        ("classify", "beit_base_patch16_224_pt22k_ft22k.pth", {}, INCEPTION, 0.875),
        ("classify", "beitv2_base_patch16_224_pt1k_ft1k.pth", {}, IMAGENET, 0.875),
        ("classify", "mine.pth", {"imagenet_default_mean_and_std": True}, IMAGENET, 0.875),
        ("classify", "beitv2.pth", {"imagenet_default_mean_and_std": False}, INCEPTION, 0.875),
        ("segment", "upernet.pth", {}, IMAGENET, 0.875),
        ("classify 384", "beit_base_patch16_384.pth", {}, INCEPTION, 1.0),
    ],
)
def test_pixels_of_official_files(
    name: str, file_name: str, options: dict[str, bool], expected: Any, crop: float, network: Any, tmp_path: Path
) -> None:
    model = network(name.removesuffix(" 384"))
    if "absolute" in name:  # only width 64 and its multiples show their heads without a position table
        backbone = replace(model.config.backbone, width=64, heads=1)
        model = MaskedImageModel(replace(model.config, backbone=backbone))
    if name.endswith(" 384"):
        model = type(model)(replace(model.config, backbone=replace(model.config.backbone, image_size=(384, 384))))
    prefixes = {"backbone.": "backbone.", "pyramid.": "backbone."} if name == "segment" else {"backbone.": "", "cls_branch.": ""}
    torch.save({"model": official_state(model, prefixes, []), "args": argparse.Namespace(**options)}, tmp_path / file_name)
    again: Any = load(tmp_path / file_name)
    assert again.config.preprocessing == replace(expected, crop_share=crop)
    assert any(note.startswith("images: normalized with") for note in again.load_report.notes)


def test_a_rectangle_is_read_off_the_index(network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]) -> None:
    model = network("classify, rectangle")
    torch.save(official_state(model, {"backbone.": ""}, ["blocks.0.attn"]), tmp_path / "x.pth")
    again: Any = load(tmp_path / "x.pth")
    assert again.config.backbone.image_size == (48, 80)
    assert_same_tensors(again, model)
    torch.save(official_state(model, {"backbone.": ""}, []), tmp_path / "x.pth")
    with pytest.raises(UserError, match="the grid of patches is not a square"):
        load(tmp_path / "x.pth")


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", "model_ema"])
def test_wrappers(wrapper: str, network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]) -> None:
    model = network("masked")
    state = official_state(model, {"backbone.": ""}, [])
    torch.save({wrapper: {"module": state} if wrapper == "model" else state, "epoch": 1}, tmp_path / "x.pth")
    assert_same_tensors(load(tmp_path / "x.pth"), model)


def test_a_wrapper_that_contains_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path / "x.pth")


def test_tensors_beside_the_wrapper_are_not_the_network(
    network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]
) -> None:
    model = network("masked")
    torch.save({"center": torch.ones(3), "model": official_state(model, {"backbone.": ""}, [])}, tmp_path / "x.pth")
    assert_same_tensors(load(tmp_path / "x.pth"), model)


MM_NAMES = (
    ("patch_embed.proj", "patch_embed.projection"),
    ("blocks.", "layers."),
    ("norm1", "ln1"),
    ("norm2", "ln2"),
    ("mlp.fc1", "ffn.layers.0.0"),
    ("mlp.fc2", "ffn.layers.1"),
)


def as_mm(model: nn.Module, changes: dict[str, str]) -> dict[str, Tensor]:
    """The names of mmpretrain and mmsegmentation, by their tables of differences to the official ones."""
    state = {}
    for name, tensor in model.state_dict().items():
        prefix = next((prefix for prefix in changes if name.startswith(prefix)), "")
        renamed = changes.get(prefix, "") + name.removeprefix(prefix)
        if renamed.startswith(("backbone.", "neck.patch_aggregation")):
            for ours, theirs in MM_NAMES:
                renamed = renamed.replace(ours, theirs)
        state[renamed] = tensor.clone()
    return state


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("masked", {"backbone.norm.": "backbone.ln1.", "lm_head.": "head.cls_head."}),
        (
            "masked v2",
            {
                "backbone.norm.": "neck.norm.",
                "cls_branch.cls_pt_layers.": "neck.patch_aggregation.",
                "lm_head.": "head.cls_head.",
            },
        ),
        ("classify", {"fc_norm.": "backbone.ln2.", "head.": "head.fc."}),
        ("segment", {"pyramid.fpn1.": "neck.upsample_4x.", "pyramid.fpn2.": "neck.upsample_2x."}),
    ],
)
def test_mmpretrain_and_mmsegmentation(
    name: str, changes: dict[str, str], network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]
) -> None:
    model = network(name)
    state = as_mm(model, changes) | {"target_generator.encoder.cls_token": torch.ones(1)}
    torch.save({"state_dict": state, "meta": {"epoch": 3}}, tmp_path / "x.pth")
    again: Any = load(tmp_path / "x.pth")
    assert_same_tensors(again, model)
    layout = "mmsegmentation" if name == "segment" else "mmpretrain"
    assert again.load_report.source.endswith(f"({layout})")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"blocks.0.attn.extra.weight": torch.ones(1)}, r"does not know 1 tensors: blocks\.0\.attn\.extra\.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "blocks.3.norm1.bias"}, r"1 missing: backbone\.blocks\.3\.norm1\.bias"),
        (
            lambda s: {k: v for k, v in s.items() if not k.endswith("bias_table") or ".0." in k},
            r"7 missing: backbone\.blocks\.1\.attn\.relative_position_bias_table",
        ),
        (lambda s: s | {"blocks.2.norm1.bias": torch.ones(5)}, r"blocks\.2\.norm1\.bias 5 instead of 24"),
        (lambda s: {"conv1.weight": torch.ones(1)}, "holds no BEiT network"),
        (lambda s: {k: v for k, v in s.items() if k != "cls_token"}, "it has no cls_token"),
        (lambda s: {}, "holds no weights"),
    ],
)
def test_nothing_is_loaded_in_part(change: Callable[..., Any], message: str, network: Any, tmp_path: Path) -> None:
    state = official_state(network("classify"), {"backbone.": ""}, [])
    torch.save({"model": change(state)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        convert(tmp_path / "x.pth", "native", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_becomes_float32(network: Any, tmp_path: Path) -> None:
    state = official_state(network("classify"), {"backbone.": ""}, [])
    torch.save(
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, tmp_path / "x.pth"
    )
    model = load(tmp_path / "x.pth")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert torch.equal(model.head.weight, state["head.weight"].half().float())
    assert {record.reason for record in model.load_report.records} == {"float16 to float32"}


def test_inspect(network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path / "x.pth", format="microsoft")
    summary = inspect_checkpoint(tmp_path / "x.pth")
    assert summary.layout == "microsoft"
    assert summary.task == "classification"
    assert summary.parameters == sum(parameter.numel() for parameter in network("classify").parameters())
    shown = dict(summary.lines())
    assert shown["network"] == "8 blocks, width 24, 4 heads, MLP 48, LayerScale"
    assert shown["images"] == "64x64, 3 channels, patches of 16x16"
    assert shown["positions"] == "per block relative"
    assert shown["pixels"] == "mean 0.1 0.2 0.3, deviation 0.4 0.5 0.6, crop share 0.9"
    assert shown["classes"] == "3: cat, dog, fungi ü"
    with pytest.raises(UserError, match="does not exist"):
        inspect_checkpoint(tmp_path / "nothing")


def test_another_decoder_without_a_config_is_refused(network: Any, tmp_path: Path) -> None:
    state = network("segment, setr_pup").state_dict()
    official = {name.replace("pyramid.", "backbone."): tensor for name, tensor in state.items()}
    torch.save({"state_dict": official}, tmp_path / "setr.pth")
    with pytest.raises(UserError, match="the decoder in the file is not UPerNet"):
        load(tmp_path / "setr.pth")
