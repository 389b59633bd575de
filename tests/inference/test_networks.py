"""Weights that are rounded beforehand give what autocast gives, bit for bit."""

from __future__ import annotations

import copy

import torch

from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.inference.networks import cast_weights_
from beitkit.nn.models import Classifier


def test_nothing_changes_under_autocast() -> None:
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/16", image_size=64, relative_positions="per_block", final_norm=False)
    model = Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b", "c")), head_scale=1.0).eval()
    rounded = cast_weights_(copy.deepcopy(model), torch.bfloat16)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded(images), model(images))
    assert {weight.dtype for name, weight in rounded.named_parameters() if "mlp" in name} == {torch.bfloat16}
    assert {weight.dtype for name, weight in rounded.named_parameters() if "norm" in name or "gamma" in name} == {torch.float32}


def test_a_run_without_autocast_keeps_its_weights() -> None:
    layer = torch.nn.Linear(2, 2)
    assert cast_weights_(layer, None).weight.dtype == torch.float32
