"""timm and our classifier agree on the same file, in both directions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from beitkit.data.views.image import EvaluationView
from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.interop.save import save
from beitkit.nn.models import Classifier

CLASSIFIERS = [
    "classify",
    "classify, class token",
    "classify, absolute",
    "classify, shared table",
    "classify, rectangle",
    "classify, one channel",
]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_timm_reads_what_we_write(name: str, network: Any, random_images: Any, timm_library: Any, tmp_path: Path) -> None:
    ours = network(name)
    save(ours, tmp_path / "out", format="timm")
    theirs = timm_library.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = random_images(2, ours.config.backbone.channels, *ours.config.backbone.image_size)
    torch.testing.assert_close(theirs(images), ours(images), rtol=0, atol=1e-5)


def test_small_networks_show_timm_whole_images(network: Any, tmp_path: Path) -> None:
    """Up to 32 pixels our evaluation squeezes whole images to the network's size; timm's has no such rule of its own."""
    for size, expected in ((32, (1.0, "squash")), (64, (0.9, "center"))):
        ours = network("classify")
        backbone = replace(ours.config.backbone, image_size=(size, size), patch=(8, 8))
        save(Classifier(replace(ours.config, backbone=backbone)), tmp_path / str(size), format="timm")
        written = json.loads((tmp_path / str(size) / "config.json").read_text())["pretrained_cfg"]
        assert (written["crop_pct"], written["crop_mode"]) == expected
        view = EvaluationView(load(tmp_path / str(size)).config.preprocessing, (size, size))
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
        shown = EvaluationView(ours.config.preprocessing, (size, size))(image, random.Random(0))["images"]
        assert torch.equal(view(image, random.Random(0))["images"], shown)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_we_read_what_timm_writes(
    name: str, network: Any, random_images: Any, timm_library: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]
) -> None:
    first = network(name)
    save(first, tmp_path / "out", format="timm")
    theirs = timm_library.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1.01)
    save_file(theirs.state_dict(), tmp_path / "out" / "model.safetensors")
    ours = load(tmp_path / "out")
    assert ours.config == first.config
    images = random_images(2, ours.config.backbone.channels, *ours.config.backbone.image_size)
    torch.testing.assert_close(theirs(images), ours(images), rtol=0, atol=1e-5)


def test_a_bare_state_dict_of_timm(network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]) -> None:
    ours = network("classify")
    save(ours, tmp_path / "out", format="timm")
    state = load_file(tmp_path / "out" / "model.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, tmp_path / "model.pth")
    for path in (tmp_path / "out" / "model.safetensors", tmp_path / "model.pth"):
        assert_same_tensors(load(path), ours)


def test_the_older_form_of_the_config(network: Any, tmp_path: Path) -> None:
    ours = network("classify")
    save(ours, tmp_path / "out", format="timm")
    path = tmp_path / "out" / "config.json"
    newer = json.loads(path.read_text())
    about = newer["pretrained_cfg"]
    path.write_text(json.dumps({"architecture": "beit_base_patch16_224", "num_features": 24, **about}))
    assert load(tmp_path / "out").config.preprocessing == ours.config.preprocessing


def test_only_classifiers_go_to_timm(network: Any, tmp_path: Path) -> None:
    for name, task in (("masked", "masked-image modeling"), ("segment", "semantic segmentation")):
        with pytest.raises(UserError, match=f"timm has BEiT for classification only.*{task}"):
            save(network(name), tmp_path / "out", format="timm")
    assert not (tmp_path / "out").exists()


def test_several_labels_and_whole_images(network: Any, tmp_path: Path, timm_library: Any) -> None:
    """What timm has no word for comes back, and timm still reads the folder."""
    first = network("classify")
    shown = replace(first.config.preprocessing, fit="squeeze", filter="bilinear")
    ours = type(first)(replace(first.config, multilabel=True, preprocessing=shown))
    save(ours, tmp_path / "out", format="timm")
    assert load(tmp_path / "out").config == ours.config
    theirs = timm_library.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert (theirs.pretrained_cfg["crop_mode"], theirs.pretrained_cfg["interpolation"]) == ("squash", "bilinear")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    for mode, fit in (("border", "letterbox"), ("corner", "crop")):
        config["pretrained_cfg"]["crop_mode"] = mode
        path.write_text(json.dumps(config))
        assert load(tmp_path / "out").config.preprocessing.fit == fit
    assert any("crop_mode corner" in note for note in load(tmp_path / "out").load_report.notes)


def test_bfloat16_rounds_where_timm_rounds(network: Any, random_images: Any, timm_library: Any, tmp_path: Path) -> None:
    """Without LayerScale and absolute positions nothing but the concatenation lifts the stream to float32."""
    first = network("classify")
    backbone = replace(first.config.backbone, layer_scale=None)
    ours = type(first)(replace(first.config, backbone=backbone)).eval()
    ours.load_state_dict({name: tensor for name, tensor in first.state_dict().items() if "gamma" not in name})
    save(ours, tmp_path / "out", format="timm")
    theirs = timm_library.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    types = []
    for block in (*theirs.blocks, *ours.backbone.blocks):
        block.register_forward_hook(lambda _, given, made: types.append(made.dtype))
    images = random_images(8, 3, 64, 64)
    with torch.no_grad():
        exact = ours(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded, others = ours(images).float(), theirs(images).float()
    assert set(types) == {torch.float32}
    assert (rounded - exact).abs().mean() < 1.2 * (others - exact).abs().mean() + 1e-6
    torch.testing.assert_close(rounded, others, rtol=0, atol=0.05)
