"""The classification losses against their formulas."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.nn.models import Classifier
from beitkit.objectives.classify import Classify

BACKBONE = BackboneConfig(width=12, depth=1, heads=2, hidden=24, image_size=(8, 8), patch=(4, 4), final_norm=False)
CONFIG = ClassifierConfig(backbone=BACKBONE, classes=("a", "b", "c"))
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.1, 3.0], [0.0, 1.0, 0.2], [1.0, -1.0, 0.0]])


class Fixed(Classifier):
    """Answers with given logits."""

    def forward(self, images: Tensor) -> Tensor:
        return LOGITS


def objective(smoothing: float, *, multilabel: bool = False) -> Classify:
    return Classify(Fixed(replace(CONFIG, multilabel=multilabel)), smoothing)


IMAGES = torch.zeros(4, 3, 8, 8)


def test_plain_labels_are_the_smoothed_cross_entropy() -> None:
    labels = torch.tensor([0, 2, 0, 0])
    loss = objective(0.1)({"images": IMAGES, "labels": labels}, 0.0)
    log = LOGITS.log_softmax(1)
    expected = -(0.9 * log[range(4), labels] + 0.1 * log.mean(1)).mean()
    assert torch.allclose(loss.total, expected)
    assert loss.parts["accuracy"] == 0.75


def test_mixed_targets_give_timm_s_loss(timm_library: Any) -> None:
    timm_mixup = importlib.import_module("timm.data.mixup")
    soft = importlib.import_module("timm.loss").SoftTargetCrossEntropy()
    labels, share = torch.tensor([0, 2, 1, 1]), 0.7
    one_hot = F.one_hot(labels, 3).float()
    targets = share * one_hot + (1 - share) * one_hot.flip(0)
    loss = objective(0.1)({"images": IMAGES, "labels": labels, "targets": targets}, 0.0)
    expected = soft(LOGITS, timm_mixup.mixup_target(labels, 3, share, smoothing=0.1))
    assert torch.allclose(loss.total, expected)
    assert loss.parts["accuracy"] == 0.75  # by the larger part: 0, 2, 1 are right, the last should be 1


def test_several_labels_are_the_binary_cross_entropy_smoothed_toward_a_half() -> None:
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]])
    loss = objective(0.2, multilabel=True)({"images": IMAGES, "targets": targets}, 0.0)
    wanted = targets * 0.8 + 0.1
    probability = LOGITS.sigmoid()
    expected = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log()).mean()
    assert torch.allclose(loss.total, expected)
    assert loss.parts["accuracy"] == pytest.approx(2 / 3)  # the third shows nothing and does not count


def test_it_learns_a_batch_by_heart_in_each_form() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    batch = {"images": images, "labels": labels, "targets": F.one_hot(labels, 3).float()}
    for multilabel in (False, True):
        classify = Classify(Classifier(replace(CONFIG, multilabel=multilabel), head_scale=1.0), 0.0)
        optimizer = torch.optim.AdamW(nn.Module.parameters(classify), lr=3e-3)
        for _ in range(100):
            loss = classify(batch, 0.0)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        assert loss.total < 0.1
        assert loss.parts["accuracy"] == 1
