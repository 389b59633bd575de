"""Exported programs compute what the networks do, for any batch size, in the engine that runs them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import beitkit.runs.checkpoints.programs as exporting
from beitkit.configs.codec import from_json
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.errors import UserError
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.checkpoints.programs import export, suffix_of

BACKBONE = BackboneConfig(
    width=24, depth=4, heads=4, hidden=48, image_size=(64, 96), patch=(16, 16), relative_positions="per_block", final_norm=False
)
PRETRAINED = BackboneConfig(width=24, depth=2, heads=4, hidden=48, image_size=(48, 48), patch=(16, 16), mask_token=True)


def network(kind: str) -> Any:
    torch.manual_seed(0)
    models = {
        "classifier": lambda: Classifier(ClassifierConfig(backbone=BACKBONE, classes=("a", "b", "c")), head_scale=1.0),
        "segmenter": lambda: Segmenter(SegmenterConfig(backbone=BACKBONE, classes=("a", "b"), channels=16)),
        "linear": lambda: Segmenter(
            SegmenterConfig(backbone=BACKBONE, classes=("a", "b"), head="linear", auxiliary_channels=None)
        ),
        "setr_pup": lambda: Segmenter(SegmenterConfig(backbone=BACKBONE, classes=("a", "b"), head="setr_pup", channels=16)),
        "features": lambda: MaskedImageModel(MaskedImageModelConfig(backbone=PRETRAINED, vocabulary=8)),
    }
    model = models[kind]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def outputs_of(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        if isinstance(model, MaskedImageModel):
            features = model.backbone(images)
            return [features.cls, features.patches]
        return [model(images)]


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "linear", "setr_pup", "features"])
def test_onnx(kind: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    model, path = network(kind), tmp_path / "sub" / "model.onnx"
    assert export(model, path) < 1e-5
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]
    names = [value.name for value in session.get_outputs()]
    assert names == (["cls", "patches"] if kind == "features" else ["logits"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, *model.config.backbone.image_size)
        for ours, theirs in zip(outputs_of(model, images), session.run(None, {"images": images.numpy()}), strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(onnx.load(path))
    described = json.loads(session.get_modelmeta().custom_metadata_map["beitkit"])
    assert from_json(type(model.config), described) == model.config
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_the_logits_of_a_calibrated_classifier_are_divided_already(format: Any, tmp_path: Path) -> None:
    model = network("classifier")
    model.config = replace(model.config, temperature=2.5)
    path = tmp_path / f"model{suffix_of(format)}"
    assert export(model, path, format=format) < 1e-5
    images = torch.randn(2, 3, *model.config.backbone.image_size)
    notes = {"beitkit.json": ""}
    if format == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        described = session.get_modelmeta().custom_metadata_map["beitkit"]
    else:
        logits = torch.export.load(path, extra_files=notes).module()(images)
        described = notes["beitkit.json"]
    with torch.no_grad():
        torch.testing.assert_close(logits.softmax(1), model.probabilities(model(images)), rtol=1e-4, atol=1e-5)
    assert from_json(ClassifierConfig, json.loads(described)).temperature == 1


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "linear", "setr_pup", "features"])
def test_torch(kind: str, tmp_path: Path) -> None:
    model, path = network(kind), tmp_path / "model.pt2"
    assert export(model, path, format="torch") < 1e-5
    notes = {"beitkit.json": ""}
    program = torch.export.load(path, extra_files=notes).module()
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, *model.config.backbone.image_size)
        result = program(images)
        for ours, theirs in zip(outputs_of(model, images), result if kind == "features" else [result], strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert from_json(type(model.config), json.loads(notes["beitkit.json"])) == model.config


def test_a_network_in_training_mode_is_exported_without_dropping_paths(tmp_path: Path) -> None:
    model = network("classifier").train()
    assert export(model, tmp_path / "model.pt2", format="torch") < 1e-5


def test_a_program_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="differs from the network"):
        export(network("classifier"), tmp_path / "model.pt2", format="torch")
    assert not list(tmp_path.iterdir())


def test_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = network("classifier")
    with pytest.raises(UserError, match=r"ends in \.onnx, got .*model\.pt"):
        export(model, tmp_path / "model.pt")
    with pytest.raises(UserError, match="there are onnx, torch"):
        suffix_of("tensorrt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'beitkit\[onnx\]'"):
        export(model, tmp_path / "model.onnx")
