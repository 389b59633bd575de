"""Images in class folders with one that is broken, and networks with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from beitkit.cli import main
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.interop.formats.native import save_native
from beitkit.nn.models import Classifier, MaskedImageModel

CLASSES = ("cat", "dog", "emu")
BACKBONE = BackboneConfig(width=24, depth=3, heads=4, hidden=48, image_size=(48, 64), patch=(16, 16), final_norm=False)
PRETRAINED = BackboneConfig(width=24, depth=3, heads=4, hidden=48, image_size=(48, 64), patch=(16, 16), mask_token=True)
Command = Callable[..., int]


def drawn(model: nn.Module) -> nn.Module:
    """The network with weights that make it say something."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`new` with 40 images in three folders, `cls`, `several` (multilabel) and `pre`."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    for index in range(40):
        path = folder / "new" / CLASSES[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (60 + index % 5, 70, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    config = ClassifierConfig(backbone=BACKBONE, classes=CLASSES)
    save_native(drawn(Classifier(config)), folder / "cls")  # type: ignore[arg-type]
    several = ClassifierConfig(backbone=BACKBONE, classes=CLASSES, multilabel=True)
    save_native(drawn(Classifier(several)), folder / "several")  # type: ignore[arg-type]
    save_native(drawn(MaskedImageModel(MaskedImageModelConfig(backbone=PRETRAINED, vocabulary=8))), folder / "pre")  # type: ignore[arg-type]
    return folder


@pytest.fixture
def command() -> Command:
    """Run a command of the command line here; returns its exit code."""

    def run(*arguments: object) -> int:
        small = ["--threads", "1", "--device", "cpu", "--precision", "float32", "--workers", "0"]
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments), *small])
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run
