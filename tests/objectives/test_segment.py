"""The segmentation loss: the official value, its definition, ignored pixels, and that it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.model import BackboneConfig, SegmentationHead, SegmenterConfig
from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.errors import UserError
from beitkit.nn.segmentation.segmenter import SegmentationLogits, Segmenter
from beitkit.objectives.segment import Segment, balanced_weights, dice_loss, segmentation_loss

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


def test_balanced_weights_are_those_of_scikit_learn_over_the_classes_that_occur() -> None:
    # n_samples / (n_classes * np.bincount(y)), and 1 for a class that does not occur.
    counts = np.array([900, 90, 10, 0])
    expected = counts.sum() / (3 * counts[:3])
    assert balanced_weights(torch.from_numpy(counts)).tolist() == pytest.approx([*expected.tolist(), 1.0])
    assert balanced_weights(torch.from_numpy(counts))[:3] @ torch.from_numpy(counts[:3]).float() == pytest.approx(1000)


@pytest.mark.parametrize("average", ["valid", "all"])
def test_class_weights_are_those_of_torch(average: Any) -> None:
    logits, labels = random_case()
    assert logits.auxiliary is not None
    weights = torch.tensor([0.2, 1.0, 3.0, 5.0, 0.5])
    config = SegmentationLossConfig(auxiliary_weight=0.25, average=average, class_weights="balanced")
    loss = segmentation_loss(logits, labels, config, weights)
    sized = [F.interpolate(part, size=(16, 24), mode="bilinear", align_corners=False) for part in (logits.main, logits.auxiliary)]
    main, auxiliary = (F.cross_entropy(part, labels.long(), weight=weights, ignore_index=255) for part in sized)
    if average == "all":
        counted = labels[labels != 255].long()
        main, auxiliary = (part * weights[counted].sum() / labels.numel() for part in (main, auxiliary))
    assert loss.total.item() == pytest.approx((main + 0.25 * auxiliary).item(), rel=1e-5)


def brute_dice(logits: Tensor, labels: Tensor) -> float:
    """1 - the mean Dice coefficient of the classes that are there, by numpy, class by class."""
    exponents = np.exp(logits.detach().double().numpy())
    shares, truth = exponents / exponents.sum(1, keepdims=True), labels.numpy()
    scores = []
    for label in sorted(set(truth[truth != 255].tolist())):
        is_counted = truth != 255
        p, g = shares[:, label][is_counted], (truth == label)[is_counted]
        scores.append(2 * (p * g).sum() / (p.sum() + g.sum()))
    return 1 - float(np.mean(scores))


def test_the_dice_loss_class_by_class() -> None:
    logits, labels = random_case()
    labels[labels == 3] = 255  # a class that the batch does not show
    sized = F.interpolate(logits.main, size=(16, 24), mode="bilinear", align_corners=False)
    assert dice_loss(sized, labels.long()).item() == pytest.approx(brute_dice(sized, labels), rel=1e-5)
    plain = segmentation_loss(logits, labels)
    with_dice = segmentation_loss(logits, labels, SegmentationLossConfig(dice_weight=2.0))
    assert with_dice.total.item() == pytest.approx(plain.total.item() + 2 * brute_dice(sized, labels), rel=1e-5)
    assert with_dice.parts["dice"].item() == pytest.approx(brute_dice(sized, labels), rel=1e-5)
    # In closed form: right everywhere is 0; even odds between two classes of half the pixels each are 1/2.
    halves = torch.tensor([[[0, 0, 1, 1]]])
    right = torch.where(halves == 0, 40.0, -40.0)
    assert dice_loss(torch.stack((right, -right), 1), halves).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(torch.zeros(1, 2, 1, 4), halves).item() == pytest.approx(0.5)


def test_the_objective_weighs_by_the_pixels_of_the_training_masks() -> None:
    torch.manual_seed(0)
    model = segmenter().eval()
    labels = labels_in_turn()
    batch = {"images": torch.randn(1, 3, 64, 64), "label_map": labels}
    pixels = [64, 32, 16, 8, 4, 2, 0]
    config = SegmentationLossConfig(class_weights="balanced", dice_weight=1.0)
    objective = Segment(model, config, pixels)
    weights = balanced_weights(torch.tensor(pixels))
    expected = segmentation_loss(model.training_logits(batch["images"]), labels, config, weights)
    assert objective(batch, 0.0).total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert not [name for name in objective.state_dict() if "class_weights" in name]  # checkpoints stay as they are


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("weights", [None, torch.rand(5)])
def test_no_labeled_pixel_is_a_loss_of_zero_that_goes_backward(average: Any, weights: Tensor | None) -> None:
    logits, labels = random_case()
    config = SegmentationLossConfig(average=average, dice_weight=0.0 if weights is None else 1.0)
    loss = segmentation_loss(logits, torch.full_like(labels, 255), config, weights)
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
