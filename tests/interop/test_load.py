"""What `load` makes of a checkpoint: other tasks, classes and image sizes, and a report that names every tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from beitkit.configs.model import BackboneConfig, BareBackbone
from beitkit.contracts import LoadReport, TensorRecord
from beitkit.errors import UserError
from beitkit.interop.formats.native import save_native
from beitkit.interop.load import load
from beitkit.interop.save import save
from beitkit.nn.models import FeatureNetwork
from beitkit.nn.resize import resize_absolute_positions, resize_relative_positions


@pytest.fixture
def saved(network: Any, tmp_path: Path) -> Callable[[str], tuple[Any, Path]]:
    """A network by name, and the folder it was saved to."""

    def save(name: str) -> tuple[Any, Path]:
        model = network(name)
        save_native(model, tmp_path / "model")
        return model, tmp_path / "model"

    return save


def fresh_tensors(model: Any) -> set[str]:
    return {record.name for record in model.load_report.records if record.fate == "fresh"}


def test_pretraining_to_classifier(saved: Any, random_images: Any) -> None:
    pretrained, path = saved("masked v2, own head")
    model = load(path, task="classify", classes=["a", "b", "c", "d"])
    backbone, table = pretrained.backbone, pretrained.backbone.rel_pos_bias.relative_position_bias_table
    tables = [block.attn.relative_position_bias_table for block in model.backbone.each_block()]
    assert len(tables) == 8
    assert all(torch.equal(own, table) for own in tables)
    assert len({own.data_ptr() for own in tables}) == 8
    assert model.backbone.norm is None
    assert model.backbone.mask_token is None
    assert model.config.classes == ("a", "b", "c", "d")
    assert torch.equal(model.fc_norm.weight, torch.ones(24))
    assert float(model.head.weight.detach().abs().max()) < 1e-4  # the official head starts at 0.02 times 0.001
    assert float(model.head.bias.detach().abs().max()) == 0
    images = random_images(2, 3, 64, 64)
    (before,), (after,) = backbone.intermediates(images, [7]), model.backbone.intermediates(images, [7])
    torch.testing.assert_close(after.patches, before.patches, rtol=0, atol=1e-5)
    counts = model.load_report.counts()
    dropped = len([name for name in pretrained.state_dict() if name.startswith(("cls_branch.", "lm_head."))]) + 3
    assert counts == {"kept": len(model.state_dict()) - 12, "expanded": 8, "dropped": dropped, "fresh": 4}
    assert fresh_tensors(model) == {
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }


def test_every_tensor_is_in_the_report(saved: Any) -> None:
    before, path = saved("masked v2")
    for model in (load(path), load(path, task="classify", num_classes=2), load(path, task="segment", num_classes=2)):
        records = model.load_report.records
        arrived = {record.name for record in records if record.fate != "dropped"}
        assert arrived == set(model.state_dict())
        assert {source for record in records for source in record.sources} == set(before.state_dict())
        assert all(record.reason for record in records if record.fate in ("dropped", "fresh", "expanded", "resized"))


def test_pretraining_to_segmenter(saved: Any, random_images: Any) -> None:
    pretrained, path = saved("masked")
    model = load(path, task="segment", num_classes=5)
    assert model.config.channels == 24
    assert model.config.preprocessing == pretrained.config.preprocessing
    assert model(random_images(1, 3, 64, 64)).shape == (1, 5, 64, 64)
    assert fresh_tensors(model) == {name for name in model.state_dict() if not name.startswith("backbone.")}


def test_classifier_to_segmenter_and_back(saved: Any, tmp_path: Path) -> None:
    classifier, path = saved("classify")
    segmenter = load(path, task="segment", num_classes=2)
    save_native(segmenter, tmp_path / "segmenter")
    again = load(tmp_path / "segmenter", task="classify", classes=classifier.config.classes)
    for name, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[name], tensor)
    assert again.load_report.counts()["fresh"] == 4


def test_other_classes_mean_a_fresh_head(saved: Any) -> None:
    classifier, path = saved("classify")
    kept = (load(path), load(path, num_classes=3), load(path, classes=["cat", "dog", "fungi ü"]))
    assert all(torch.equal(model.head.weight, classifier.head.weight) for model in kept)
    assert all(model.config.classes == classifier.config.classes for model in kept)
    fresh = (load(path, num_classes=4), load(path, classes=["cat", "dog", "horse"]))
    for model in fresh:
        assert model.load_report.counts()["fresh"] == 2
        assert torch.equal(model.fc_norm.weight, classifier.fc_norm.weight)
        assert float(model.head.weight.detach().abs().max()) < 1e-4


def test_what_was_fitted_for_a_head_goes_with_it(saved: Any, tmp_path: Path) -> None:
    model, _ = saved("classify")
    fitted = {"temperature": 2.0, "thresholds": (0.1, 0.2, 0.3)}
    model.config = replace(model.config, multilabel=True, **fitted)
    save_native(model, tmp_path / "fitted")
    kept = [load(tmp_path / "fitted"), load(tmp_path / "fitted", classes=["cat", "dog", "fungi ü"], image_size=96)]
    assert [(one.config.temperature, one.config.thresholds) for one in kept] == [tuple(fitted.values())] * 2
    for wish in ({"num_classes": 4}, {"classes": ["cat", "dog", "horse"]}, {"pooling": "grid"}):
        assert load(tmp_path / "fitted", **wish).config.uncalibrated() == load(tmp_path / "fitted", **wish).config
    with pytest.raises(UserError, match="`thresholds` are one for each of 3 classes of a network for several labels"):
        replace(model.config, multilabel=False)


def test_another_pooling_means_a_fresh_head(saved: Any, tmp_path: Path) -> None:
    before, path = saved("classify")
    model = load(path, pooling="grid")
    assert fresh_tensors(model) == {"head.weight", "head.bias"}
    assert model.config.classes == before.config.classes
    assert model.head.in_features == 16 * before.head.in_features
    assert torch.equal(model.fc_norm.weight, before.fc_norm.weight)
    save_native(model, tmp_path / "grid")
    again = load(tmp_path / "grid", pooling="grid", image_size=96)
    assert fresh_tensors(again) == set(), "the head of a coarse grid serves images of any size"
    with pytest.raises(UserError, match="the timm format has no grid pooling"):
        save(model, tmp_path / "timm", format="timm")


def test_numbered_classes_can_be_given_names(saved: Any, tmp_path: Path) -> None:
    _, path = saved("classify")
    numbered = load(path, num_classes=4)
    save_native(numbered, tmp_path / "numbered")
    named = load(tmp_path / "numbered", classes=["a", "b", "c", "d"])
    assert torch.equal(named.head.weight, numbered.head.weight)
    assert named.config.classes == ("a", "b", "c", "d")


def test_other_classes_of_a_segmenter(saved: Any) -> None:
    segmenter, path = saved("segment")
    model = load(path, num_classes=7)
    assert fresh_tensors(model) == {
        "decode_head.conv_seg.weight",
        "decode_head.conv_seg.bias",
        "auxiliary_head.conv_seg.weight",
        "auxiliary_head.conv_seg.bias",
    }
    assert model.config.palette is None
    bottleneck = segmenter.decode_head.fpn_bottleneck.conv.weight
    assert torch.equal(model.decode_head.fpn_bottleneck.conv.weight, bottleneck)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("classify", {"backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias"}),
        ("classify, class token", {"backbone.mask_token"}),
        ("classify, shared table", {"backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias"}),
        ("classify, absolute", {"backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias"}),
        ("segment", {"backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias"}),
        ("masked v2, own head", set()),
    ],
)
def test_any_network_becomes_one_that_predicts_masked_patches(
    name: str, lacking: set[str], saved: Any, random_images: Any
) -> None:
    before, path = saved(name)
    model = load(path, task="masked", vocabulary=20)
    own_head = {"cls_branch.cls_pt_lm_head.weight", "cls_branch.cls_pt_lm_head.bias"} if "own head" in name else set()
    assert fresh_tensors(model) == lacking | own_head | {"lm_head.weight", "lm_head.bias"}
    assert model.config.vocabulary == 20
    assert model.config.tokenizer == ""
    assert model.config.backbone.relative_positions == before.config.backbone.relative_positions
    assert model.config.preprocessing == before.config.preprocessing
    images = random_images(2, 3, 64, 64)
    (one,), (other,) = before.backbone.intermediates(images, [7]), model.backbone.intermediates(images, [7])
    assert torch.equal(one.patches, other.patches)
    if "class token" in name:
        assert torch.equal(model.backbone.norm.weight, before.backbone.norm.weight)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 3] = True
    assert model(images, mask).shape == (2, 20)
    arrived = {record.name for record in model.load_report.records if record.fate != "dropped"}
    assert arrived == set(model.state_dict())
    assert all(record.reason for record in model.load_report.records if record.fate in ("dropped", "fresh"))


def test_a_plain_vit_becomes_one_too_with_its_key_bias_and_its_norm(tmp_path: Path) -> None:
    size = {"width": 24, "depth": 2, "heads": 4, "hidden": 48, "image_size": (64, 64), "patch": (16, 16)}
    plain = {"absolute_positions": True, "relative_positions": "none", "layer_scale": None, "key_bias": True}
    before = FeatureNetwork(BareBackbone(backbone=BackboneConfig(**size, **plain)))
    before.backbone.norm.weight.data.uniform_()
    save_native(before, tmp_path / "model")
    model = load(tmp_path / "model", task="masked", vocabulary=20)
    assert fresh_tensors(model) == {"backbone.mask_token", "lm_head.weight", "lm_head.bias"}
    assert model.config.backbone.key_bias
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_own_vocabulary_keeps_the_head_and_pixels_are_another_target(saved: Any) -> None:
    before, path = saved("masked v2, own head")
    kept = load(path, task="masked", vocabulary=32)
    assert kept.config == before.config
    assert not fresh_tensors(kept)
    pixels = load(path, task="masked", vocabulary="pixels")
    assert pixels.config.cls_branch is None
    assert fresh_tensors(pixels) == {"lm_head.weight", "lm_head.bias"}
    assert pixels.lm_head.out_features == 3 * 16 * 16
    save_native(pixels, path.parent / "pixels")
    gray = load(path.parent / "pixels", task="masked", vocabulary="pixels", channels=1)
    assert fresh_tensors(gray) == {"lm_head.weight", "lm_head.bias"}
    assert not fresh_tensors(load(path.parent / "pixels", task="masked", vocabulary="pixels"))


@pytest.mark.parametrize("size", [96, (96, 48), (32, 160)])
def test_another_image_size(size: Any, saved: Any, random_images: Any) -> None:
    classifier, path = saved("classify")
    model = load(path, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    grid = height // 16, width // 16
    expected = resize_relative_positions(classifier.backbone.blocks[3].attn.relative_position_bias_table, (4, 4), grid)
    assert torch.equal(model.backbone.blocks[3].attn.relative_position_bias_table, expected)
    assert model(random_images(2, 3, height, width)).shape == (2, 3)
    assert model.load_report.counts()["resized"] == 8
    assert model.config.backbone.image_size == (height, width)


def test_another_image_size_with_absolute_positions_and_with_a_shared_table(saved: Any) -> None:
    model, path = saved("masked, absolute")
    larger = load(path, image_size=(96, 64))
    assert torch.equal(larger.backbone.pos_embed, resize_absolute_positions(model.backbone.pos_embed, (4, 4), (6, 4)))
    model, path = saved("masked")
    table = resize_relative_positions(model.backbone.rel_pos_bias.relative_position_bias_table, (4, 4), (6, 6))
    assert torch.equal(load(path, image_size=96).backbone.rel_pos_bias.relative_position_bias_table, table)
    handed_over = load(path, image_size=96, task="classify", num_classes=2)
    assert torch.equal(handed_over.backbone.blocks[7].attn.relative_position_bias_table, table)
    reasons = {record.reason for record in handed_over.load_report.records if record.fate == "resized"}
    assert reasons == {"every block gets a copy of the shared table; grid 4x4 to 6x6"}


def test_drop_path(saved: Any) -> None:
    _, path = saved("classify")
    assert load(path).backbone.blocks[7].drop_path == pytest.approx(0.1)
    assert load(path, drop_path=0.4).backbone.blocks[7].drop_path == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("name", "wish", "message"),
    [
        ("masked", {"num_classes": 3}, "has no classes"),
        ("masked", {"task": "classify"}, "needs num_classes= or classes="),
        ("masked", {"task": "classify", "num_classes": 0}, "at least 1, got 0"),
        ("masked", {"task": "classify", "num_classes": 3, "classes": ["a"]}, "contradict each other"),
        ("masked", {"task": "classify", "classes": ["a", "a"]}, "one occurs twice"),
        ("masked", {"image_size": 65}, "65x65 is not a whole number of 16x16 patches"),
        ("masked", {"drop_path": 1.5}, r"`drop_path` must lie in \[0, 1\)"),
        (
            "classify",
            {"task": "masked"},
            "needs vocabulary=, the number of visual tokens, because the file is for classification",
        ),
        ("segment", {"task": "masked"}, "needs vocabulary=, .* because the file is for semantic segmentation"),
        ("masked", {"task": "classify", "num_classes": 2, "vocabulary": 8}, "say task='masked' with it"),
        ("masked", {"pooling": "grid"}, "pooling= is of a classifier"),
        ("masked", {"task": "segment", "num_classes": 2, "pooling": "grid"}, "pooling= is of a classifier"),
    ],
)
def test_wishes_that_cannot_be_met(name: str, wish: dict[str, Any], message: str, saved: Any) -> None:
    _, path = saved(name)
    with pytest.raises(UserError, match=message) as caught:
        load(path, **wish)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_table_of_a_report() -> None:
    records = (
        TensorRecord("head.weight", "kept", ("classifier.weight",), (3, 4)),
        TensorRecord("n", "kept", ("n",), ()),
        TensorRecord("lm_head.bias", "dropped", ("lm_head.bias",), (9,), "for pre-training"),
    )
    report = LoadReport(source="x.pth (microsoft)", records=records, notes=("a note",))
    assert report.summary() == "x.pth (microsoft): 2 kept, 1 dropped"
    assert report.table().splitlines() == [
        "x.pth (microsoft): 2 kept, 1 dropped",
        "kept     head.weight   3x4     from classifier.weight",
        "kept     n             scalar",
        "dropped  lm_head.bias  9       for pre-training",
        "a note",
    ]


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channels_give_what_a_replicated_image_gave(channels: int, saved: Any) -> None:
    _, path = saved("classify")
    before, after = load(path).double(), load(path, channels=channels).double()  # of the rule alone, not of float32's sums
    size = before.config.backbone.image_size
    gray = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected, found = before(gray.expand(-1, 3, -1, -1)), after(gray.expand(-1, channels, -1, -1))
    assert torch.allclose(found, expected, atol=1e-6)
    assert after.config.backbone.channels == channels
    report = after.load_report
    assert report is not None
    filters = next(record for record in report.records if record.name == "backbone.patch_embed.proj.weight")
    assert filters.fate == "expanded"
    assert f"each of {channels} channels gets the mean of the filters of 3, times 3/{channels}" in filters.reason
    _, path = saved("masked")
    masked = load(path, channels=channels)
    assert masked.config.backbone.channels == channels


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_is_not_finite_is_neither_written_nor_read(number: float, network: Any, tmp_path: Path) -> None:
    model = network("masked v2, own head")
    save_native(model, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    name = "backbone.blocks.1.mlp.fc1.bias"
    with torch.no_grad():
        model.get_parameter(name)[-1] = number
    with pytest.raises(UserError, match=f"numbers are not finite .* in {name};"):
        save_native(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == whole
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{tmp_path} .*: numbers are not finite .* in {name};"):
        load(tmp_path)
