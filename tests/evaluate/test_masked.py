"""Masked accuracy by hand."""

import math

import pytest
import torch

from beitkit.evaluate.masked import MaskedAccuracy


def test_accuracy_and_loss_over_masked_patches_of_readable_pictures() -> None:
    mask = torch.tensor([[True, False, True], [True, True, True]])
    tokens = torch.tensor([[2, 0, 1], [0, 0, 0]])

    def predict(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert images.shape[0] == 1  # the broken picture is not asked about
        logits = torch.zeros(int(mask.sum()), 4)
        logits[0, 2] = math.log(3)  # three times as likely as each other: probability 1/2
        return logits

    batch = {"images": torch.zeros(2, 1, 2, 2), "mask": mask, "tokens": tokens, "broken": torch.tensor([-1, 5])}
    values = dict(MaskedAccuracy(predict, lambda: iter([batch, {**batch, "broken": torch.tensor([1, 2])}])).run())
    assert values["accuracy"] == 0.5  # the second logits are all equal, so code 0 is named where 1 is right
    assert values["loss"] == pytest.approx((math.log(2) + math.log(4)) / 2)
