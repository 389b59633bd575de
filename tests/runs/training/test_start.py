"""How runs begin: what learns and what stays, in all verbs; and that adapters leave ordinary files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import beitkit
from beitkit.configs.codec import from_json, to_json
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.train import Freeze, LightConfig, LoopConfig, OptimConfig
from beitkit.contracts import LoadReport, TensorRecord
from beitkit.errors import Interrupted, UserError
from beitkit.nn.lora import merged_state
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.segment.config import SegmentRun
from beitkit.runs.training.start import Start
from beitkit.train.checkpoints.checkpoint import Checkpoints

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 4, "workers": 0, "threads": 1, "device": "cpu", "precision": "float32"}


ALL = LightConfig()


def configured(freeze: Freeze = False, light: LightConfig = ALL) -> FinetuneRun:
    optim = OptimConfig(layer_decay=0.5)
    return FinetuneRun(images=Path("i"), out=Path("o"), model=Path("m"), freeze=freeze, light=light, optim=optim)


def masked() -> MaskedImageModel:
    """Four blocks with shared and absolute positions, a mask token and a last norm."""
    backbone = BackboneConfig.named("nano/8", image_size=16, absolute_positions=True, mask_token=True)
    return MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=7))


def classifier() -> Classifier:
    backbone = BackboneConfig.named("nano/8", image_size=16, relative_positions="per_block", final_norm=False)
    return Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b")))


def learning(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def beginnings(names: set[str]) -> set[str]:
    """Names without what follows the block, or the part."""
    return {".".join(name.split(".")[:3] if ".blocks." in name else name.split(".")[:2]) for name in names}


BLOCKS = {f"backbone.blocks.{index}" for index in range(4)}
HEAD = {"lm_head.weight", "lm_head.bias", "backbone.norm"}
BELOW = {"backbone.cls_token", "backbone.mask_token", "backbone.pos_embed", "backbone.patch_embed", "backbone.rel_pos_bias"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (configured(), BELOW | BLOCKS | HEAD),
        (configured(freeze=True), HEAD),
        (configured(freeze=("blocks",)), BELOW | HEAD),
        (configured(freeze=("patch_embed", "tokens")), {"backbone.pos_embed", "backbone.rel_pos_bias"} | BLOCKS | HEAD),
        (configured(freeze=("positions",)), BELOW - {"backbone.pos_embed", "backbone.rel_pos_bias"} | BLOCKS | HEAD),
        (configured(light=LightConfig(train_blocks="last:1")), {"backbone.blocks.3"} | HEAD),
        (configured(light=LightConfig(train_blocks="last:4")), BLOCKS | HEAD),
    ],
)
def test_what_learns(config: FinetuneRun, expected: set[str]) -> None:
    assert beginnings(learning(Start.of(masked, config).model)) == expected


def test_parts_of_the_blocks() -> None:
    of_block = {name.split(".", 3)[3] for name in learning(classifier()) if ".blocks.2." in name}
    for part, gone in {"attn": "attn.", "mlp": "mlp.", "norms": "norm"}.items():
        model = Start.of(classifier, configured(freeze=(part,))).model  # type: ignore[arg-type]
        kept = {name for name in of_block if not name.startswith(gone)} | {"attn.relative_position_bias_table"}
        assert {name.split(".", 3)[3] for name in learning(model) if ".blocks.2." in name} == kept
    model = Start.of(classifier, configured(freeze=("positions",))).model
    assert learning(classifier()) - learning(model) == {f"{block}.attn.relative_position_bias_table" for block in BLOCKS}


def test_norms_inside_attention_and_mlp_are_norms_as_well() -> None:
    config = replace(BackboneConfig.named("nano/8", image_size=16, final_norm=False), key_bias=True, sub_norm=True)
    model = Start.of(
        lambda: Classifier(ClassifierConfig(backbone=config, classes=("a", "b"))), configured(freeze=("norms",))
    ).model
    kept = {name for name, _ in model.named_parameters()} - learning(model)
    norms = ("norm1", "norm2", "attn.norm", "mlp.norm")
    assert kept == {f"{block}.{norm}.{kind}" for block in BLOCKS for norm in norms for kind in ("weight", "bias")}


def test_adapters_in_the_blocks_that_learn() -> None:
    start = Start.of(masked, configured(light=LightConfig(lora_rank=2, train_blocks="last:2")))
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    adapters = {f"backbone.blocks.{i}.{layer}.lora_{side}" for i in (2, 3) for layer in layers for side in "AB"}
    assert learning(start.model) == adapters | {"lm_head.weight", "lm_head.bias", "backbone.norm.weight", "backbone.norm.bias"}
    in_groups = {id(parameter) for group in start.groups for parameter in group["params"]}
    assert in_groups == {id(parameter) for parameter in start.model.parameters() if parameter.requires_grad}
    of = {id(parameter): group["lr_scale"] for group in start.groups for parameter in group["params"]}
    names = dict(start.model.named_parameters())
    assert of[id(names["backbone.blocks.2.mlp.fc1.lora_A"])] == 0.25
    assert of[id(names["backbone.blocks.3.attn.qkv.lora_B"])] == 0.5
    total = sum(parameter.numel() for parameter in names.values())
    few = 2 * 2 * (2 * 96 + 96 * 3 + 96 + 2 * (96 + 384)) + 7 * 96 + 7 + 2 * 96
    assert start.describe() == f"; {few:,} of {total:,} parameters learn"


def test_it_starts_exactly_where_it_would_without_adapters() -> None:
    plain = Start.of(masked, configured()).model.eval()
    light = Start.of(masked, configured(light=LightConfig(lora_rank=4))).model.eval()
    images, mask = torch.randn(2, 3, 16, 16), torch.tensor([[True, False, False, True]] * 2)
    with torch.no_grad():  # with gradients, a position bias that learns takes another kernel
        assert torch.equal(light(images, mask), plain(images, mask))
    state = merged_state(light)
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in state.items())


def test_what_is_fresh_learns_beside_adapters() -> None:
    def loaded() -> MaskedImageModel:
        model = masked()
        record = TensorRecord("backbone.mask_token", "fresh", (), (1, 1, 96), "for masked-image modeling")
        model.load_report = LoadReport(source="a classifier", records=(record,), notes=())
        return model

    model = Start.of(loaded, configured(light=LightConfig(lora_rank=2))).model
    assert {"backbone.mask_token"} == {
        name for name in learning(model) if name.startswith("backbone.") and "lora" not in name and ".norm." not in name
    }


def test_no_gradient_below_the_lowest_block_that_learns() -> None:
    model = Start.of(classifier, configured(light=LightConfig(train_blocks="last:2"))).model
    has_gradient = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda block, inputs, output: has_gradient.append(output.requires_grad))
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert has_gradient == [False, False, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_blocks": "4"}, "`train_blocks` must be last:N, such as last:4 for the last four blocks, got '4'"),
        ({"train_blocks": "last:0"}, "got 'last:0'"),
        ({"lora_alpha": 4.0}, "`lora_alpha` scales low-rank adapters; give `lora_rank` with it"),
        ({"lora_rank": 0}, "`lora_rank` must be at least 1, got 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LightConfig(**options)


LORA, LAST = LightConfig(lora_rank=2), LightConfig(train_blocks="last:2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": True, "light": LAST}, "`freeze` keeps all blocks as they are, `train_blocks` trains some"),
        ({"freeze": ("blocks",), "light": LAST}, "`freeze` keeps all blocks as they are, `train_blocks` trains some"),
        ({"freeze": ("norms",), "light": LORA}, "`lora_rank` keeps all of the network but its head as it is"),
        ({"freeze": ("mlp", "mlp")}, "`freeze` must name each at most once, and at least one, got mlp mlp"),
        ({"freeze": ()}, "`freeze` must name each at most once, and at least one"),
    ],
)
@pytest.mark.parametrize("kind", [FinetuneRun, SegmentRun, PretrainRun])
def test_contradictions(kind: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    given = {"target": "pixels", "init": Path("m")} if kind is PretrainRun else {"model": Path("m")}
    with pytest.raises(UserError, match=message):
        kind(images=Path("i"), out=Path("o"), **given, **options)


@pytest.mark.parametrize(
    ("options", "name"), [({"freeze": True}, "freeze"), ({"light": LORA}, "lora_rank"), ({"light": LAST}, "train_blocks")]
)
@pytest.mark.parametrize("kind", [FinetuneRun, SegmentRun])
def test_fresh_weights_are_not_worth_keeping(kind: Callable[..., Any], options: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"`{name}` keeps the features of `model`; with `scratch` there are none"):
        kind(images=Path("i"), out=Path("o"), model=Path("m"), scratch=True, **options)


@pytest.mark.parametrize("options", [{"freeze": True}, {"light": LORA}, {"light": LAST}])
def test_pretraining_keeps_weights_of_a_start_alone(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="fresh ones are not worth keeping; give `init`"):
        PretrainRun(images=Path("i"), out=Path("o"), target="pixels", **options)
    assert PretrainRun(images=Path("i"), out=Path("o"), target="pixels", freeze=("patch_embed",)).freeze == ("patch_embed",)


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(UserError, match="`train_blocks` must be at most last:4, as this network has 4 blocks, got last:5"):
        Start.of(masked, configured(light=LightConfig(train_blocks="last:5")))


def test_runs_from_before_are_read_as_they_were() -> None:
    segment = SegmentRun(images=Path("i"), out=Path("o"), model=Path("m"))
    assert to_json(segment)["freeze"] is False
    assert "light" not in to_json(segment)
    assert from_json(SegmentRun, to_json(segment) | {"freeze": True}) == replace(segment, freeze=True)
    finetune = FinetuneRun(images=Path("i"), out=Path("o"), model=Path("m"))
    assert not {"light", "freeze"} & to_json(finetune).keys()
    some = replace(finetune, freeze=("mlp", "norms"), light=LAST)
    assert from_json(FinetuneRun, to_json(some)) == some


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise of two classes, with masks, and a network that was pre-trained on them."""
    folder, draw = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for index in range(count):
            image = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            mask = Image.fromarray(np.kron(draw.integers(0, 2, (2, 2), dtype=np.uint8), np.ones((8, 8), np.uint8)))
            for kind, content in (
                (f"images/{part}/{'ab'[index % 2]}", image),
                (f"scenes/images/{part}", image),
                (f"scenes/masks/{part}", mask),
            ):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                content.save(folder / kind / f"{index}.png")
    size: dict[str, Any] = {"size": "nano", "patch": 4, "image_size": 16}
    beitkit.pretrain(folder / "images", out=folder / "pre", target="pixels", **size, **SHORT)
    return folder


def continued(world: Path, out: Path, **options: Any) -> None:
    beitkit.pretrain(world / "images", init=world / "pre", out=out, target="pixels", **(SHORT | {"lr": 0.1}), **options)


def finetuned(world: Path, out: Path, **options: Any) -> None:
    beitkit.finetune(world / "images", model=world / "pre", out=out, **SHORT, **options)


def segmented(world: Path, out: Path, **options: Any) -> None:
    beitkit.segment(world / "scenes", model=world / "pre", out=out, head="linear", **SHORT, **options)


def started(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def saved(out: Path) -> set[str]:
    """Names in the newest checkpoint of a run."""
    manifest = Checkpoints(out / "checkpoints").newest()
    assert manifest is not None
    return set(manifest.tensors)


@pytest.mark.parametrize("verb", [continued, finetuned, segmented])
def test_the_verbs_leave_ordinary_files(
    world: Path, tmp_path: Path, verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(world, tmp_path / "light", lora_rank=2, lora_alpha=4.0, loop=LoopConfig(ema=0.5, evaluate_every=2))
    assert "parameters learn" in capsys.readouterr().err
    verb(world, tmp_path / "last", train_blocks="last:1")
    before, light, last = (started(path) for path in (world / "pre", tmp_path / "light", tmp_path / "last"))
    assert light.keys() == last.keys()
    assert not any("lora" in name for name in light)
    beitkit.load(tmp_path / "light")
    beitkit.load(tmp_path / "light" / "checkpoints" / "best")
    backbone = {name for name in light.keys() & before.keys() if name.startswith("backbone.") and ".norm." not in name}
    moved = {name for name in backbone if not torch.equal(light[name], before[name])}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert moved == {f"backbone.blocks.{index}.{layer}.weight" for index in range(4) for layer in layers}
    assert {name.split(".")[2] for name in backbone if not torch.equal(last[name], before[name])} == {"3"}
    names = saved(tmp_path / "light")
    weight = "model.backbone.blocks.0.attn.qkv"
    assert {f"parameter.{weight}.weight", f"parameter.{weight}.lora_A", f"exp_avg.{weight}.lora_A"} <= names
    assert f"exp_avg.{weight}.weight" not in names
    learned = {name.removeprefix("exp_avg.") for name in names if name.startswith("exp_avg.")}
    assert learned == {name.removeprefix("exp_avg_sq.") for name in names if name.startswith("exp_avg_sq.")}
    assert {name for name in learned if ".blocks." in name} == {
        name.removeprefix("parameter.") for name in names if name.startswith("parameter.") and "lora_" in name
    }
    assert json.loads((tmp_path / "light" / "config.json").read_text())["light"]["lora_rank"] == 2


@pytest.mark.parametrize("options", [{"lora_rank": 2, "train_blocks": "last:3"}, {"freeze": ("patch_embed", "norms")}])
def test_a_cut_run_ends_bit_for_bit_the_same(
    world: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"loop": LoopConfig(ema=0.9, save_every=2), "drop_path": 0.5, "steps": 4}
    given = SHORT | options
    beitkit.finetune(world / "images", model=world / "pre", out=tmp_path / "whole", **given)
    save = Checkpoints.save

    def cut(self: Checkpoints, step: int, *state: Any, **how: bool) -> None:
        save(self, step, *state, **how)
        raise Interrupted(step, 4, 2)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", cut)
        with pytest.raises(Interrupted):
            beitkit.finetune(world / "images", model=world / "pre", out=tmp_path / "cut", **given)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    beitkit.finetune(world / "images", model=world / "pre", out=tmp_path / "cut", **given)
    whole, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == again
