"""Small networks with random weights, one of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import (
    BackboneConfig,
    ClassifierConfig,
    ClsBranchConfig,
    MaskedImageModelConfig,
    SegmenterConfig,
)
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter

# Eight blocks, so that four of them can be tapped with distances; 4 heads of width 6, which no rule could guess.
BACKBONE = BackboneConfig(width=24, depth=8, heads=4, hidden=48, image_size=(64, 64), patch=(16, 16))
ODD_PIXELS = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_share=0.9)
PRETRAINED = replace(BACKBONE, mask_token=True)
FINE_TUNED = replace(BACKBONE, relative_positions="per_block", final_norm=False, drop_path=0.1)
ABSOLUTE = {"relative_positions": "none", "absolute_positions": True, "layer_scale": None}
ANIMALS = ("cat", "dog", "fungi ü")

CONFIGS: dict[str, MaskedImageModelConfig | ClassifierConfig | SegmenterConfig] = {
    "masked": MaskedImageModelConfig(backbone=PRETRAINED, vocabulary=32, preprocessing=ODD_PIXELS),
    "masked v2": MaskedImageModelConfig(backbone=PRETRAINED, vocabulary=32, cls_branch=ClsBranchConfig(early_layer=5)),
    "masked v2, own head": MaskedImageModelConfig(
        backbone=PRETRAINED, vocabulary=32, cls_branch=ClsBranchConfig(early_layer=6, shared_head=False), tokenizer="0123abcd"
    ),
    "masked, absolute": MaskedImageModelConfig(backbone=replace(PRETRAINED, **ABSOLUTE), vocabulary=32),
    "classify": ClassifierConfig(backbone=FINE_TUNED, classes=ANIMALS, preprocessing=ODD_PIXELS),
    "classify, class token": ClassifierConfig(backbone=replace(FINE_TUNED, final_norm=True), classes=ANIMALS, pooling="cls"),
    "classify, absolute": ClassifierConfig(backbone=replace(FINE_TUNED, **ABSOLUTE), classes=ANIMALS),
    "classify, shared table": ClassifierConfig(backbone=replace(FINE_TUNED, relative_positions="shared"), classes=ANIMALS),
    "classify, rectangle": ClassifierConfig(backbone=replace(FINE_TUNED, image_size=(48, 80)), classes=ANIMALS),
    "classify, one channel": ClassifierConfig(backbone=replace(FINE_TUNED, channels=1), classes=ANIMALS),
    "segment": SegmenterConfig(
        backbone=FINE_TUNED,
        classes=ANIMALS,
        channels=24,
        auxiliary_channels=8,
        taps=(2, 4, 5, 7),
        palette=((0, 0, 0), (1, 2, 3), (250, 0, 9)),
    ),
    "segment, linear": SegmenterConfig(backbone=FINE_TUNED, classes=ANIMALS, head="linear", auxiliary_channels=None),
    "segment, setr_pup": SegmenterConfig(backbone=FINE_TUNED, classes=ANIMALS, head="setr_pup", channels=8),
    "segment, no auxiliary head": SegmenterConfig(backbone=FINE_TUNED, classes=ANIMALS, channels=16, auxiliary_channels=None),
}


def make(config: Any) -> Any:
    """A network whose every tensor is random, so that no two are alike."""
    kinds = {MaskedImageModelConfig: MaskedImageModel, ClassifierConfig: Classifier, SegmenterConfig: Segmenter}
    model: nn.Module = kinds[type(config)](config)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
            if name.endswith(("running_var", "bn.weight", "norm.weight", "norm1.weight", "norm2.weight")):
                tensor.abs_().add_(0.5)
    return model.eval()


@pytest.fixture
def without_gradients() -> Iterator[None]:
    """Where outputs are compared to the last digits, both sides have to compute attention in the same way."""
    with torch.no_grad():
        yield


@pytest.fixture
def network() -> Callable[[str], Any]:
    """A random network by its name in `CONFIGS`."""
    return lambda name: make(CONFIGS[name])


@pytest.fixture(params=CONFIGS)
def any_network(request: pytest.FixtureRequest) -> Any:
    """Every one of them."""
    return make(CONFIGS[request.param])


@pytest.fixture
def random_images() -> Callable[..., torch.Tensor]:
    """Normally distributed images of a shape."""
    return lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def assert_same_tensors() -> Callable[[nn.Module, nn.Module], None]:
    """Equal names, types and numbers."""

    def check(one: nn.Module, other: nn.Module) -> None:
        first, second = one.state_dict(), other.state_dict()
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert tensor.dtype == second[name].dtype, name
            assert torch.equal(tensor, second[name]), name

    return check
