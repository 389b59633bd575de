"""Networks of BEiT's family that only look like BEiT: DiT, data2vec-vision, EVA-01. Referees: transformers, timm, torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beitkit.configs.data import CLIP, IMAGENET, INCEPTION
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.errors import UserError
from beitkit.interop.build import shapes_of
from beitkit.interop.inspect import inspect_checkpoint
from beitkit.interop.load import load
from beitkit.interop.reading.describe import Hints, describe
from beitkit.interop.save import convert, save
from beitkit.interop.stored import LazyTensor, State
from beitkit.nn.models import Classifier, FeatureNetwork, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install transformers)")

PLAIN = {"relative_positions": "none", "absolute_positions": True, "layer_scale": None}
EXACT = {"rtol": 0, "atol": 1e-5}
pytestmark = pytest.mark.usefixtures("without_gradients")


def unread(config: MaskedImageModelConfig | ClassifierConfig) -> State:
    """The official tensors of a network of any size, of which only names and shapes are there."""
    names = {name.removeprefix("backbone."): shape for name, shape in shapes_of(config).items()}

    def read() -> Tensor:
        raise AssertionError("no number is needed")

    return {name: LazyTensor(shape=shape, dtype=torch.float32, read=read, sources=(name,)) for name, shape in names.items()}


def masked(size: str, outputs: int, **options: Any) -> MaskedImageModelConfig:
    return MaskedImageModelConfig(backbone=BackboneConfig.named(size, mask_token=True, **options), vocabulary=outputs)


def classifier(size: str, **options: Any) -> ClassifierConfig:
    backbone = BackboneConfig.named(
        size, final_norm=False, **{"relative_positions": "none", "absolute_positions": True, **options}
    )
    return ClassifierConfig(backbone=backbone, classes=tuple(map(str, range(9))))


def official_file(model: Any, path: Path, **options: Any) -> Path:
    state = {name.removeprefix("backbone."): tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "args": argparse.Namespace(**options)}, path)
    return path


# Heads, which no tensor shows without a position table.


@pytest.mark.parametrize(
    ("size", "heads"), [("giant/14", 16), ("huge/14", 16), ("base/16", 12), ("large/16", 16), ("tiny/16", 3), ("nano/4", 3)]
)
def test_heads_of_released_sizes(size: str, heads: int) -> None:
    config, notes = describe(unread(classifier(size, layer_scale=None)), Hints())
    assert config.backbone.heads == heads
    assert not any(note.startswith("heads:") for note in notes)


def test_heads_of_other_sizes_are_a_rule_that_is_named_or_are_refused() -> None:
    known = classifier("giant/14", layer_scale=None)
    shorter = replace(known, backbone=replace(known.backbone, depth=39))
    config, notes = describe(unread(shorter), Hints())
    assert config.backbone.heads == 22
    assert any(note.startswith("heads: 22, by the rule of 64 numbers for each; the file does not say") for note in notes)
    assert describe(unread(shorter), Hints(heads=16))[0].backbone.heads == 16
    odd = replace(known, backbone=replace(known.backbone, width=544, heads=16, depth=3))
    with pytest.raises(UserError, match="width 544 is no multiple of 64; add config.json"):
        describe(unread(odd), Hints())
    assert describe(unread(replace(odd, backbone=replace(odd.backbone, depth=24))), Hints())[0].backbone.heads == 16


# Heads that regress features, and whose pixels they are.


@pytest.mark.parametrize(
    ("config", "hints", "vocabulary", "features", "pixels"),
    [
        (masked("giant/14", 1024, **PLAIN), Hints(), None, 1024, CLIP),
        (masked("giant/14", 1024, **PLAIN), Hints(is_imagenet=False), None, 1024, CLIP),
        (masked("giant/14", 1024, **PLAIN), Hints(is_imagenet=True), None, 1024, IMAGENET),
        (masked("base/16", 768), Hints(), None, 768, IMAGENET),
        (masked("large/16", 1024), Hints(), None, 1024, IMAGENET),
        (masked("base/16", 8192), Hints(), 8192, None, INCEPTION),
        (masked("base/16", 8192, **PLAIN), Hints(), 8192, None, IMAGENET),
        (masked("base/16", 8192, **{**PLAIN, "layer_scale": 0.1}), Hints(), 8192, None, INCEPTION),  # DiT
        (masked("base/16", 768), Hints(vocabulary=768, preprocessing=INCEPTION), 768, None, INCEPTION),
    ],
)
def test_what_a_pretraining_head_predicts(
    config: MaskedImageModelConfig, hints: Hints, vocabulary: int | None, features: int | None, pixels: Any
) -> None:
    found, notes = describe(unread(config), hints)
    assert isinstance(found, MaskedImageModelConfig)
    assert (found.vocabulary, found.features) == (vocabulary, features)
    assert found.preprocessing == pixels
    assert found.backbone.heads == config.backbone.heads
    assert any("there are no visual tokens" in note for note in notes) == (features is not None)


@pytest.mark.parametrize(
    ("config", "hints", "pixels"),
    [
        (classifier("giant/14", image_size=336, layer_scale=None), Hints(), replace(CLIP, crop_share=1.0)),
        (classifier("base/16"), Hints(), INCEPTION),  # DiT on RVL-CDIP
        (classifier("base/16", relative_positions="per_block"), Hints(family="data2vec-vision"), IMAGENET),
    ],
)
def test_pixels_of_classifiers(config: ClassifierConfig, hints: Hints, pixels: Any) -> None:
    assert describe(unread(config), hints)[0].preprocessing == pixels


def small_data2vec() -> MaskedImageModel:
    torch.manual_seed(0)
    backbone = BackboneConfig(width=24, depth=2, heads=4, hidden=48, image_size=(32, 32), patch=(16, 16), mask_token=True)
    return MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=None, features=24)).eval()


def test_a_network_that_regresses(tmp_path: Path, random_images: Any, assert_same_tensors: Callable[..., None]) -> None:
    """It gives its features, tells what it is, goes through our formats, and starts other tasks; it is no tokens' network."""
    expected = small_data2vec()
    path = official_file(expected, tmp_path / "checkpoint-799.pth", imagenet_default_mean_and_std=True)
    model = load(path)
    assert_same_tensors(model, expected)
    assert (model.config.vocabulary, model.config.features) == (None, 24)
    images, mask = random_images(2, 3, 32, 32), torch.tensor([[True, False, True, False]] * 2)
    assert model(images, mask).shape == (4, 24)
    assert torch.equal(model(images, mask), expected(images, mask))
    assert dict(inspect_checkpoint(path).lines())["features"] == "24"
    for place, file_format in (("native", "native"), ("again.pth", "microsoft")):
        convert(path, file_format, tmp_path / place)
        assert load(tmp_path / place).config == model.config
    with pytest.raises(UserError, match="this one predicts features; use native"):
        save(model, tmp_path / "hf", format="huggingface")
    assert load(path, task="classify", num_classes=2).load_report.counts()["fresh"] == 4


def test_finetuned_data2vec_is_known_by_its_folder(tmp_path: Path, network: Any) -> None:
    path = tmp_path / "data2vec_vision_finetuned_base"
    path.mkdir()
    state = {name.removeprefix("backbone."): tensor for name, tensor in network("classify").state_dict().items()}
    torch.save({"module": state, "csr_tensor_module_names": set()}, path / "mp_rank_00_model_states.pt")
    model = load(path / "mp_rank_00_model_states.pt")
    assert model.config.preprocessing == IMAGENET
    assert "images: normalized with ImageNet's statistics, as all official networks of data2vec-vision" in model.load_report.notes


# Other software's names.


SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 64}


def randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(2)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator).mul_(0.2).abs_().add_(0.05))
    return model.eval()


@pytest.mark.parametrize("has_folder", [True, False], ids=["folder", "bare state dict"])
def test_data2vec_classifiers_of_transformers(has_folder: bool, tmp_path: Path, random_images: Any) -> None:
    config = transformers.Data2VecVisionConfig(**SIZES, layer_norm_eps=1e-6, use_relative_position_bias=True, num_labels=5)
    theirs = randomized(transformers.Data2VecVisionForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    path = tmp_path
    if not has_folder:
        path = tmp_path / "data2vec.bin"
        torch.save(theirs.state_dict(), path)
    ours, images = load(path), random_images(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images).logits, **EXACT)
    assert ours.config.preprocessing == IMAGENET
    assert "huggingface" in ours.load_report.source


@pytest.mark.parametrize("positions", ["use_relative_position_bias", "use_shared_relative_position_bias"])
def test_data2vec_backbones_of_transformers(positions: str, tmp_path: Path, random_images: Any) -> None:
    config = transformers.Data2VecVisionConfig(**SIZES, layer_norm_eps=1e-6, use_mask_token=True, **{positions: True})
    theirs = randomized(transformers.Data2VecVisionModel(config))
    theirs.save_pretrained(tmp_path)
    ours, images = load(tmp_path, task="classify", num_classes=2), random_images(2, 3, 64, 64)
    torch.testing.assert_close(ours.backbone(images).patches, theirs(images).last_hidden_state[:, 1:], **EXACT)


def test_data2vec_segmenters_of_transformers(tmp_path: Path, random_images: Any) -> None:
    config = transformers.Data2VecVisionConfig(
        **{**SIZES, "num_hidden_layers": 8}, use_relative_position_bias=True, out_indices=[2, 4, 5, 7], layer_norm_eps=1e-6
    )
    theirs = randomized(transformers.Data2VecVisionForSemanticSegmentation(config))
    theirs.save_pretrained(tmp_path)
    ours, images = load(tmp_path), random_images(1, 3, 64, 64)
    assert ours.config.tapped_blocks == (2, 4, 5, 7)
    # transformers taps two blocks below (docs/interop.md).
    lower = Segmenter(replace(ours.config, taps=(0, 2, 3, 5)))
    lower.load_state_dict(ours.state_dict())
    torch.testing.assert_close(lower.eval().training_logits(images).main, theirs(images).logits, rtol=1e-5, atol=1e-4)


def test_dit_of_transformers(tmp_path: Path, random_images: Any) -> None:
    """DiT is a `beit` there: absolute positions and LayerScale."""
    config = transformers.BeitConfig(**SIZES, layer_norm_eps=1e-6, use_absolute_position_embeddings=True, use_mask_token=True)
    theirs = randomized(transformers.BeitForMaskedImageModeling(config))
    theirs.save_pretrained(tmp_path)
    images, mask = random_images(2, 3, 64, 64), torch.rand(2, 16, generator=torch.Generator().manual_seed(3)) < 0.4
    ours = load(tmp_path)
    torch.testing.assert_close(ours(images, mask), theirs(images, bool_masked_pos=mask).logits[mask], **EXACT)
    assert ours.config.preprocessing == INCEPTION


def test_dit_in_a_detector_of_detectron2(tmp_path: Path) -> None:
    other = ("backbone.bottom_up.backbone.fpn1.0.weight", "backbone.fpn_lateral2.weight", "roi_heads.box_head.0.fc1.weight")
    backbone = BackboneConfig(
        width=64, depth=2, heads=1, hidden=96, image_size=(32, 32), patch=(16, 16), final_norm=False, **PLAIN
    )
    model = Classifier(ClassifierConfig(backbone=replace(backbone, layer_scale=0.1), classes=("a", "b")))
    state = {f"backbone.bottom_up.backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    state |= dict.fromkeys((*other, "proposal_generator.rpn_head.conv.weight", "pixel_mean"), torch.ones(2))
    torch.save({"model": state, "iteration": 3}, tmp_path / "publaynet_dit-b_cascade.pth")
    ours = load(tmp_path / "publaynet_dit-b_cascade.pth", task="classify", num_classes=2)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(ours.backbone.state_dict()[name], tensor), name
    assert ours.config.preprocessing == INCEPTION
    reasons = {record.reason for record in ours.load_report.records if record.fate == "dropped"}
    assert reasons >= {"a detector's head, not the backbone", "Detectron2's feature pyramid, not the backbone"}


def test_bare_names_of_mmpretrain(tmp_path: Path, network: Any) -> None:
    model = network("classify")
    changes = (("patch_embed.proj", "patch_embed.projection"), ("blocks.", "layers."), ("norm1", "ln1"), ("norm2", "ln2"))
    changes += (("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"))
    state = {}
    for name, tensor in model.backbone.state_dict().items():
        for ours, theirs in changes:
            name = name.replace(ours, theirs)
        state[name] = tensor
    torch.save(
        {"state_dict": state | {"ln2.weight": torch.ones(24), "ln2.bias": torch.ones(24)}}, tmp_path / "beit-base_3rdparty.pth"
    )
    again = load(tmp_path / "beit-base_3rdparty.pth", task="classify", num_classes=3)
    assert again.load_report.source.endswith("(mmpretrain)")
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[name], tensor), name


# EVA-01 by timm.


def eva_of_timm(timm_library: Any, **options: Any) -> Any:
    sizes = {"img_size": 56, "patch_size": 14, "embed_dim": 88, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 5}
    return randomized(timm_library.models.eva.Eva(**{**sizes, **options}))


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_eva_of_timm(pool: str, tmp_path: Path, random_images: Any, timm_library: Any) -> None:
    theirs = eva_of_timm(timm_library, global_pool=pool)
    about = {"mean": list(CLIP.mean), "std": list(CLIP.std), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
    config = {"architecture": "eva_giant_patch14_336", "model_args": {"num_heads": 4, "img_size": 56}, "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours, images = load(tmp_path), random_images(2, 3, 56, 56)
    torch.testing.assert_close(ours(images), theirs(images), **EXACT)
    assert ours.config.preprocessing == replace(CLIP, crop_share=1.0, fit="squeeze")
    if pool == "token":
        (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "eva_giant_patch14_clip_224"}))
        assert isinstance(load(tmp_path), FeatureNetwork)
        with pytest.raises(UserError, match="a backbone without a head"):
            load(tmp_path, num_classes=2)
        fresh = load(tmp_path, task="classify", num_classes=2)
        assert {record.name for record in fresh.load_report.records if record.fate == "dropped"} >= {"head.weight", "head.bias"}


def test_the_names_of_timms_eva_are_the_official_ones(timm_library: Any) -> None:
    """At its full size: nothing but names and shapes is made."""
    with torch.device("meta"):
        theirs = timm_library.create_model("eva_giant_patch14_224")
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    expected = replace(classifier("giant/14", layer_scale=None), classes=tuple(map(str, range(1000))))
    assert shapes == {name.removeprefix("backbone."): shape for name, shape in shapes_of(expected).items()}
    assert theirs.blocks[0].attn.num_heads == 16
