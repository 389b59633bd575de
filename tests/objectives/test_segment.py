"""The segmentation loss: the official value, its definition, ignored pixels, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.model import BackboneConfig, SegmentationHead, SegmenterConfig
from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.errors import UserError
from beitkit.nn.segmentation.segmenter import SegmentationLogits, Segmenter
from beitkit.objectives.segment import Segment, segmentation_loss

OFFICIAL = SegmentationLossConfig(average="all")


def segmenter(head: SegmentationHead = "uper", auxiliary_channels: int | None = 8) -> Segmenter:
    backbone = BackboneConfig(
        width=24,
        depth=4,
        heads=4,
        hidden=96,
        image_size=(64, 64),
        patch=(16, 16),
        relative_positions="per_block",
        final_norm=False,
    )
    channels = None if head == "linear" else 16
    return Segmenter(
        SegmenterConfig(
            backbone=backbone, classes=tuple("abcdefg"), head=head, channels=channels, auxiliary_channels=auxiliary_channels
        )
    )


def labels_in_turn() -> Tensor:
    labels = (torch.arange(64 * 64) % 9).view(1, 64, 64)
    labels[labels >= 7] = 255
    return labels.to(torch.uint8)


def test_golden_h(golden_fill: Any, golden_input: Any) -> None:
    official = {"pyramid.": "backbone.", "backbone.": "backbone."}
    model = golden_fill(segmenter(), official, raised=("bn.weight", "running_var", "backbone.fpn1.1.weight"))
    batch = {"images": golden_input(1, 3, 64, 64), "label_map": labels_in_turn()}
    loss = Segment(model, OFFICIAL)(batch, 0.0)
    assert loss.parts["main"].item() == pytest.approx(1.5915921, rel=1e-6)
    assert 0.4 * loss.parts["auxiliary"].item() == pytest.approx(0.6178013379, rel=1e-6)
    assert loss.total.item() == pytest.approx(1.5915921 + 0.6178013379, rel=1e-6)
    assert 100 * loss.parts["accuracy"].item() == pytest.approx(10.9130859375)
    # By default ignored pixels do not dilute the loss: 7 of 9 count.
    counted = int((batch["label_map"] != 255).sum())
    valid = Segment(model, SegmentationLossConfig())(batch, 0.0)
    assert valid.total.item() == pytest.approx(loss.total.item() * 64 * 64 / counted, rel=1e-5)
    assert valid.parts["accuracy"].item() == pytest.approx(loss.parts["accuracy"].item() * 64 * 64 / counted)


def random_case() -> tuple[SegmentationLogits, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = SegmentationLogits(
        torch.randn(2, 5, 8, 8, generator=generator).requires_grad_(),
        torch.randn(2, 5, 3, 4, generator=generator).requires_grad_(),
    )
    labels = torch.randint(0, 5, (2, 16, 24), generator=generator).to(torch.uint8)
    labels[0, :9] = 255
    return logits, labels


def test_the_definition_pixel_by_pixel() -> None:
    logits, labels = random_case()
    losses, right, count = [0.0, 0.0], 0, 0
    assert logits.auxiliary is not None
    sized = [F.interpolate(part, size=(16, 24), mode="bilinear", align_corners=False) for part in (logits.main, logits.auxiliary)]
    for b in range(2):
        for y in range(16):
            for x in range(24):
                label = int(labels[b, y, x])
                if label == 255:
                    continue
                count += 1
                right += int(sized[0][b, :, y, x].argmax()) == label
                for head in (0, 1):
                    losses[head] -= sized[head][b, :, y, x].log_softmax(0)[label].item()
    loss = segmentation_loss(logits, labels, SegmentationLossConfig(auxiliary_weight=0.25))
    assert loss.total.item() == pytest.approx((losses[0] + 0.25 * losses[1]) / count, rel=1e-5)
    assert loss.parts["accuracy"].item() == pytest.approx(right / count)
    assert not any(part.requires_grad for part in loss.parts.values())


@pytest.mark.parametrize("average", ["valid", "all"])
def test_no_labeled_pixel_is_a_loss_of_zero_that_goes_backward(average: Any) -> None:
    logits, labels = random_case()
    loss = segmentation_loss(logits, torch.full_like(labels, 255), SegmentationLossConfig(average=average))
    assert loss.total.item() == 0
    assert loss.parts["accuracy"].item() == 0
    loss.total.backward()
    for part in logits:
        assert part is not None
        assert part.grad is not None
        assert not part.grad.any()


def test_without_an_auxiliary_head() -> None:
    logits, labels = random_case()
    alone = segmentation_loss(SegmentationLogits(logits.main, None), labels)
    both = segmentation_loss(logits, labels)
    assert set(alone.parts) == {"main", "accuracy"}
    assert torch.equal(alone.total, both.parts["main"])


@pytest.mark.parametrize("head", ["uper", "setr_pup", "linear"])
def test_it_overfits_one_batch(head: SegmentationHead) -> None:
    torch.manual_seed(0)
    objective = Segment(segmenter(head, None if head == "linear" else 8), SegmentationLossConfig()).train()
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 7, (2, 4, 4), generator=generator)
    label_map = patches.repeat_interleave(16, 1).repeat_interleave(16, 2).to(torch.uint8)
    colors = torch.randn(7, 3, generator=generator)
    batch = {"images": colors[label_map.long()].permute(0, 3, 1, 2).contiguous(), "label_map": label_map}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective(batch, 0.0)
        loss.total.backward()
        optimizer.step()
    assert loss.parts["accuracy"] > 0.7


def test_wrong_weight() -> None:
    with pytest.raises(UserError, match="`loss.auxiliary_weight` must not be negative, got -1"):
        SegmentationLossConfig(auxiliary_weight=-1.0)
