"""Masked accuracy and error by hand."""

import math

import pytest
import torch

from beitkit.evaluation.masked import MaskedAccuracy, MaskedError


def test_accuracy_and_loss_over_masked_patches_of_readable_images() -> None:
    mask = torch.tensor([[True, False, True], [True, True, True]])
    tokens = torch.tensor([[2, 0, 1], [0, 0, 0]])

    def predict(images: torch.Tensor, mask: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        assert images.shape[0] == 1  # the broken image is not asked about
        logits = torch.zeros(int(mask.sum()), 4)
        logits[0, 2] = math.log(3)  # three times as likely as each other: probability 1/2
        return logits

    batch = {"images": torch.zeros(2, 1, 2, 2), "mask": mask, "tokens": tokens, "broken": torch.tensor([-1, 5])}
    values = dict(MaskedAccuracy(predict, lambda share: iter([batch, {**batch, "broken": torch.tensor([1, 2])}])).run())
    assert values["accuracy"] == 0.5  # the second logits are all equal, so code 0 is named where 1 is right
    assert values["loss"] == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_every_patch_is_judged_where_all_are_recovered() -> None:
    mask = torch.tensor([[True, False]])

    def predict(images: torch.Tensor, mask: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(at.sum()), 4)

    batch = {"images": torch.zeros(1, 1, 2, 4), "mask": mask, "tokens": torch.tensor([[1, 0]]), "broken": torch.tensor([-1])}
    assert dict(MaskedAccuracy(predict, lambda share: iter([batch]), recover_all=True).run())["accuracy"] == 0.5
    assert dict(MaskedAccuracy(predict, lambda share: iter([batch])).run())["accuracy"] == 0.0


def test_error_and_variance_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 1, 2, 4, generator=generator)  # two patches of 2x2 pixels each
    mask = torch.tensor([[True, False], [True, True], [False, True], [True, False], [True, True]])
    broken = torch.tensor([-1, -1, -1, 7, -1])

    def predict(images: torch.Tensor, mask: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return torch.full((int(at.sum()), 4), 0.25)

    whole = {"images": images, "mask": mask, "broken": broken}

    def batches(size: int):
        return lambda share: ({key: value[first : first + size] for key, value in whole.items()} for first in range(0, 5, size))

    pixels = torch.stack([images[b, 0, :, 2 * n : 2 * n + 2].flatten() for b in (0, 1, 2, 4) for n in (0, 1) if mask[b, n]])
    loss, variance = (pixels - 0.25).square().mean().item(), (pixels - pixels.mean(0)).square().mean().item()
    for size in (5, 2, 1):
        values = dict(MaskedError(predict, batches(size), patch=(2, 2)).run())
        assert values["loss"] == pytest.approx(loss, rel=1e-5)
        assert values["variance"] == pytest.approx(variance, rel=1e-5)
        assert values["explained"] == pytest.approx(1 - loss / variance, rel=1e-4)
