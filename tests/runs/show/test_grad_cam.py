"""Grad-CAM of a linear head, which has a closed form: what each patch adds to the logit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.nn.models import Classifier
from beitkit.runs.show.grad_cam import explained_block, grad_cam


def _classifier(pooling: str) -> Classifier:
    torch.manual_seed(0)
    backbone = BackboneConfig(
        width=24, depth=2, heads=4, hidden=48, image_size=(24, 32), patch=(8, 8), final_norm=pooling == "cls"
    )
    model = Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b", "c"), pooling=pooling)).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("is_frozen", [False, True])
def test_of_a_linear_head_it_is_what_each_patch_adds(is_frozen: bool) -> None:
    """Without a norm a logit is the mean of w a_i: its gradient by every patch is w / n, and the map max(0, w a_i) / n."""
    model = _classifier("mean")
    model.fc_norm = nn.Identity()  # type: ignore[assignment]
    model.requires_grad_(not is_frozen)
    images, classes = torch.randn(2, 3, 24, 32), torch.tensor([2, 0])
    maps, logits = grad_cam(model, images, classes, explained_block(model))
    with torch.no_grad():
        adds = torch.einsum("bnd,bd->bn", model.backbone(images).patches, model.head.weight[classes]) / 12
        torch.testing.assert_close(logits, model(images))
    assert (adds > 0).any()
    assert (adds < 0).any()
    torch.testing.assert_close(maps.flatten(1), adds.clamp(min=0))
    torch.testing.assert_close(logits.gather(1, classes[:, None])[:, 0], adds.sum(1) + model.head.bias[classes])


def test_a_class_token_is_explained_by_the_patches_it_last_looked_at() -> None:
    model = _classifier("cls")
    images = torch.randn(2, 3, 24, 32)
    assert explained_block(model) == 1
    assert grad_cam(model, images, None, 1)[0].max() > 0
    assert grad_cam(model, images, None, 2)[0].max() == 0  # nothing looks at the patches after the last block


def test_the_most_probable_class_is_explained_where_none_is_given() -> None:
    model, images = _classifier("mean"), torch.randn(3, 3, 24, 32)
    maps, logits = grad_cam(model, images, None, 2)
    torch.testing.assert_close(maps, grad_cam(model, images, logits.argmax(1), 2)[0])
    assert not list(model.backbone.each_block()[1]._forward_hooks)
