"""Plain ViTs as other software saves them: MAE, DINO, DeiT, timm's, transformers', and BEiT-3.

Referees: timm, transformers; for BEiT-3 its equations as torchscale's code has them, and timm.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beitkit.configs.data import IMAGENET, INCEPTION
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.interop.save import convert, save
from beitkit.nn.models import Classifier
from beitkit.runs.checkpoints.programs import export

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


# transformers.

HUGGING_FACE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 64}


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed (pip install transformers)")


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
def test_a_vit_classifier_of_transformers(eps: float, transformers: Any, tmp_path: Path, random_images: Any) -> None:
    config = transformers.ViTConfig(**HUGGING_FACE, layer_norm_eps=eps, num_labels=5)
    theirs, images = randomized(transformers.ViTForImageClassification(config)), random_images(2, 3, 64, 64)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    torch.testing.assert_close(ours(images), theirs(images).logits, **EXACT)
    assert (ours.config.backbone.norm_eps, ours.config.preprocessing) == (eps, INCEPTION)


@pytest.mark.parametrize("kind", ["ViT", "ViTMAE", "Dinov2"])
def test_backbones_of_transformers(kind: str, transformers: Any, tmp_path: Path, random_images: Any) -> None:
    options = {"mlp_ratio": 2} if kind == "Dinov2" else {}
    options |= {"mask_ratio": 0.0} if kind == "ViTMAE" else {}
    sizes = {name: size for name, size in HUGGING_FACE.items() if kind != "Dinov2" or name != "intermediate_size"}
    config = getattr(transformers, f"{kind}Config")(**sizes, patch_size=16, **options)
    theirs, images = randomized(getattr(transformers, f"{kind}Model")(config)), random_images(2, 3, 64, 64)
    theirs.save_pretrained(tmp_path)
    given = {"noise": torch.arange(16.0).expand(2, -1)} if kind == "ViTMAE" else {}  # its patches in their own order
    ours = load(tmp_path)(images)
    expected = theirs(images, **given).last_hidden_state
    torch.testing.assert_close(ours.cls, expected[:, 0], **EXACT)
    torch.testing.assert_close(ours.patches, expected[:, 1:], **EXACT)


def test_a_whole_mae_of_transformers(transformers: Any, tmp_path: Path, random_images: Any) -> None:
    sizes = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**HUGGING_FACE, **sizes, mask_ratio=0.0)).eval()
    theirs.save_pretrained(tmp_path)
    images = random_images(2, 3, 64, 64)
    expected = theirs.vit(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    torch.testing.assert_close(load(tmp_path)(images).patches, expected[:, 1:], **EXACT)


@pytest.mark.parametrize("name", ["DeiT", "Dinov2WithRegisters"])
def test_networks_of_transformers_with_other_tokens(name: str, transformers: Any, tmp_path: Path) -> None:
    getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**HUGGING_FACE)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a network of type '(deit|dinov2_with_registers)'; beitkit reads beit, "):
        load(tmp_path)


# BEiT-3, from torchscale's equations.

WIDTH, DEPTH, ROWS = 64, 2, 16 + 1 + 2


def beit3_state(has_head: bool) -> dict[str, Tensor]:
    """Random tensors by torchscale's names: branch A reads images, B text; the table's first two rows are fairseq's padding."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.weight": random(rows, columns), f"{name}.bias": random(rows)}

    def norm(name: str, width: int = WIDTH) -> dict[str, Tensor]:
        return {f"{name}.weight": random(width) + 1, f"{name}.bias": random(width)}

    state = {
        "beit3.text_embed.weight": random(10, WIDTH),
        "beit3.vision_embed.mask_token": random(1, 1, WIDTH),
        "beit3.vision_embed.cls_token": random(1, 1, WIDTH),
        "beit3.vision_embed.proj.weight": random(WIDTH, 3, 16, 16),
        "beit3.vision_embed.proj.bias": random(WIDTH),
        "beit3.encoder.embed_positions.A.weight": random(ROWS, WIDTH),
        "beit3.encoder.embed_positions.B.weight": random(40, WIDTH),
    }
    for branch in "AB":
        for index in range(DEPTH):
            layer = f"beit3.encoder.layers.{index}"
            for part in ("q", "k", "v", "out"):
                state |= linear(f"{layer}.self_attn.{part}_proj.{branch}", WIDTH, WIDTH)
            state |= norm(f"{layer}.self_attn.inner_attn_ln.{branch}") | norm(f"{layer}.self_attn_layer_norm.{branch}")
            state |= norm(f"{layer}.final_layer_norm.{branch}") | norm(f"{layer}.ffn.{branch}.ffn_layernorm", 128)
            state |= linear(f"{layer}.ffn.{branch}.fc1", 128, WIDTH) | linear(f"{layer}.ffn.{branch}.fc2", WIDTH, 128)
        if not has_head:
            state |= norm(f"beit3.encoder.layer_norm.{branch}")
    return state | (norm("fc_norm") | linear("head", 5, WIDTH) if has_head else {})


def beit3_tokens(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """What torchscale's encoder gives for images alone (one head, as 64 numbers are one)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    patches = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
    x = patches @ state["beit3.vision_embed.proj.weight"].flatten(1).T + state["beit3.vision_embed.proj.bias"]
    x = torch.cat((state["beit3.vision_embed.cls_token"].expand(len(x), -1, -1), x), dim=1)
    x = x + state["beit3.encoder.embed_positions.A.weight"][torch.arange(2, x.shape[1] + 2)]
    for index in range(DEPTH):
        layer = f"beit3.encoder.layers.{index}."
        y = norm(x, f"{layer}self_attn_layer_norm.A")
        query, key, value = (linear(y, f"{layer}self_attn.{part}_proj.A") for part in "qkv")
        mixed = (query / WIDTH**0.5 @ key.transpose(1, 2)).softmax(-1) @ value
        x = x + linear(norm(mixed, f"{layer}self_attn.inner_attn_ln.A"), f"{layer}self_attn.out_proj.A")
        hidden = linear(norm(x, f"{layer}final_layer_norm.A"), f"{layer}ffn.A.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(norm(hidden, f"{layer}ffn.A.ffn_layernorm"), f"{layer}ffn.A.fc2")
    return norm(x, "beit3.encoder.layer_norm.A") if "beit3.encoder.layer_norm.A.weight" in state else x


def test_beit3_by_its_equations(tmp_path: Path, random_images: Any) -> None:
    state, images = beit3_state(has_head=False), random_images(2, 3, 64, 64)
    ours = load(file_of(state, tmp_path / "beit3_base_patch16_224.pth"))
    expected = beit3_tokens(state, images)
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours(images).cls, expected[:, 0], **EXACT)
    torch.testing.assert_close(ours(images).patches, expected[:, 1:], **EXACT)
    assert ours.config.preprocessing == INCEPTION
    reasons = {record.reason for record in ours.load_report.records if record.fate == "dropped"}
    assert reasons == {"the branch for text"}
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(5)) < 0.4
    assert not torch.equal(ours.backbone(images, mask).cls, ours(images).cls)


def test_beit3_classifier(vit: Any, timm_library: Any, tmp_path: Path, random_images: Any) -> None:
    """Against the equations and against timm, which converts the same file."""
    state, images = beit3_state(has_head=True), random_images(2, 3, 64, 64)
    path = file_of(state, tmp_path / "beit3_base_patch16_224_in1k.pth")
    ours = load(path)
    mean = beit3_tokens(state, images)[:, 1:].mean(1)
    normed = torch.nn.functional.layer_norm(mean, (WIDTH,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-5)
    torch.testing.assert_close(ours(images), normed @ state["head.weight"].T + state["head.bias"], **EXACT)
    norm = partial(timm_library.layers.LayerNorm, eps=1e-5)
    theirs = vit(depth=DEPTH, scale_attn_norm=True, scale_mlp_norm=True, global_pool="avg", norm_layer=norm)
    converted = timm_library.models.vision_transformer.checkpoint_filter_fn(torch.load(path), theirs)
    theirs.load_state_dict(converted)
    torch.testing.assert_close(ours(images), theirs(images), **EXACT)
    assert ours.config.preprocessing.crop_share == 1.0
    assert ours.config.preprocessing.mean == IMAGENET.mean
    tasks = {"language_head.weight": torch.ones(2), "logit_scale": torch.ones(()), "mlm_head.bias": torch.ones(3)}
    other = {name: tensor for name, tensor in state.items() if not name.startswith(("fc_norm", "head"))}
    other |= {"head.0.weight": torch.ones(3), "pooler.dense.bias": torch.ones(3)}
    start = load(file_of(other | tasks, tmp_path / "beit3_base_patch16_384_vqa.pth"), task="classify", num_classes=2)
    torch.testing.assert_close(start.backbone(images).patches, beit3_tokens(state, images)[:, 1:], **EXACT)


# Written again.


def converted_by(timm_library: Any, folder: Path) -> Any:
    return timm_library.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg", "init_values": 0.1}, {"num_classes": 0}], ids=str)
def test_timm_reads_what_we_write(options: Any, vit: Any, timm_library: Any, tmp_path: Path, random_images: Any) -> None:
    first, images = vit(**options), random_images(2, 3, 64, 64)
    path = folder_of(first, tmp_path / "in", global_pool=first.global_pool)
    convert(path, "timm", tmp_path / "out")
    theirs = converted_by(timm_library, tmp_path / "out")
    assert {name: tensor.shape for name, tensor in theirs.state_dict().items()} == {
        name: tensor.shape for name, tensor in first.state_dict().items()
    }
    torch.testing.assert_close(theirs(images), first(images), rtol=0, atol=1e-6)
    again = load(tmp_path / "out")
    assert again.config.backbone == load(path).config.backbone
    assert torch.equal(again.backbone.blocks[0].attn.qkv.bias, first.blocks[0].attn.qkv.bias)


@pytest.mark.parametrize("task", ["classify", "segment", None])
def test_our_own_format_keeps_everything(task: Any, vit: Any, tmp_path: Path, assert_same_tensors: Any) -> None:
    path = file_of(vit(num_classes=0, depth=4).state_dict(), tmp_path / "mae.pth")
    model = load(path, task=task, num_classes=None if task is None else 2)
    save(model, tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.config == model.config
    assert_same_tensors(again, model)


@pytest.mark.parametrize("place", ["out.pth", "out"])
def test_formats_without_a_key_bias_give_the_same(
    place: str, vit: Any, transformers: Any, tmp_path: Path, random_images: Any
) -> None:
    theirs, images = vit(global_pool="avg"), random_images(2, 3, 64, 64)
    path = file_of(theirs.state_dict(), tmp_path / "mae_finetuned.pth")
    report = convert(path, "huggingface" if place == "out" else "microsoft", tmp_path / place)
    assert any(note.startswith("the bias of the keys is left out") for note in report.notes)
    again = load(tmp_path / place)
    assert not again.config.backbone.key_bias
    torch.testing.assert_close(again(images), theirs(images), **EXACT)
    if place == "out":
        beit = transformers.BeitForImageClassification.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(beit(images).logits, theirs(images), **EXACT)


def test_transformers_reads_a_backbone_of_ours(vit: Any, transformers: Any, tmp_path: Path, random_images: Any) -> None:
    theirs, images = vit(num_classes=0), random_images(2, 3, 64, 64)
    save(load(file_of(theirs.state_dict(), tmp_path / "dino.pth")), tmp_path / "out", format="huggingface")
    beit = transformers.BeitModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(beit(images).last_hidden_state, theirs.forward_features(images), **EXACT)


@pytest.mark.parametrize(
    ("changes", "file_format", "message"),
    [
        ({"norm_eps": 1e-12}, "microsoft", "LayerNorms have eps 1e-6, this network's 1e-12; use native"),
        ({"norm_eps": 1e-12}, "timm", "LayerNorms of eps 1e-06, this one's is 1e-12; use native"),
        ({"sub_norm": True, "norm_eps": 1e-5}, "microsoft", "no inner norms"),
        ({"sub_norm": True, "norm_eps": 1e-5}, "huggingface", "no inner norms"),
        ({"relative_positions": "per_block"}, "timm", "in plain ViTs with absolute positions only"),
    ],
)
def test_what_a_format_cannot_hold(changes: Any, file_format: Any, message: str, tmp_path: Path) -> None:
    backbone = BackboneConfig.named(
        "nano/16", image_size=32, absolute_positions=True, relative_positions="none", final_norm=False
    )
    model = Classifier(ClassifierConfig(backbone=replace(backbone, key_bias=True, **changes), classes=("a", "b")))
    with pytest.raises(UserError, match=message):
        save(model, tmp_path / "out.pth", format=file_format)
    assert not (tmp_path / "out.pth").exists()


def test_beit3_goes_to_timm(timm_library: Any, tmp_path: Path, random_images: Any) -> None:
    state, images = beit3_state(has_head=True), random_images(2, 3, 64, 64)
    convert(file_of(state, tmp_path / "in1k.pth"), "timm", tmp_path / "out")
    theirs = converted_by(timm_library, tmp_path / "out")
    torch.testing.assert_close(theirs(images), load(tmp_path / "in1k.pth")(images), **EXACT)
    torch.testing.assert_close(load(tmp_path / "out")(images), theirs(images), **EXACT)


def test_beit3_as_onnx(tmp_path: Path) -> None:
    """The exporter compares the program's outputs with the network's."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = load(file_of(beit3_state(has_head=False), tmp_path / "beit3.pth"))
    assert export(model, tmp_path / "out.onnx") < 1e-4
