"""Evaluations that two processes share come to the numbers of one, to the last bit."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from beitkit.configs.model import BackboneConfig
from beitkit.contracts import Batch, Evaluator, Share
from beitkit.evaluation.classification import ClassifierQuality
from beitkit.evaluation.masked import MaskedAccuracy, MaskedError
from beitkit.evaluation.probe import HeldOutProbe
from beitkit.evaluation.segmentation import MeanIoU
from beitkit.evaluation.tokens import TokenizerQuality
from beitkit.nn.backbone import Backbone
from beitkit.tokenizers.dvae import DiscreteVAE
from tests.train.test_no_waiting import DVAE

IMAGES, SIZE = 22, 8


def batches(share: Share) -> Iterator[Batch]:
    """22 images in batches of 3, of which one holds none that can be read."""
    generator = torch.Generator().manual_seed(0)
    broken = torch.full((IMAGES,), -1)
    broken[[4, 9, 10, 11]] = 1
    whole = {
        "images": torch.rand(IMAGES, 3, SIZE, SIZE, generator=generator),
        "labels": torch.arange(IMAGES) % 2,
        "mask": torch.rand(IMAGES, 4, generator=generator) < 0.6,
        "tokens": torch.randint(5, (IMAGES, 4), generator=generator),
        "broken": broken,
    }
    for first in range(0, IMAGES, 3)[share.rank :: share.of]:
        yield {key: value[first : first + 3] for key, value in whole.items()}


def scenes(share: Share) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(3, (5, 2, 1, 6, 6), generator=generator).to(torch.uint8)
    yield from ((image, label[0]) for image, label in pairs[share.rank :: share.of])


def patches(images: Tensor, mask: Tensor, at: Tensor) -> Tensor:
    return images.flatten(1)[:, :48].view(len(images), 4, 12)[at]


def evaluators() -> dict[str, Callable[[], Evaluator]]:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig.named("nano/4", image_size=SIZE)).eval()
    return {
        "classes": lambda: ClassifierQuality(lambda images: images.flatten(1)[:, :6], batches),
        "tokens": lambda: MaskedAccuracy(lambda *given: patches(*given)[:, :5], batches),
        "pixels": lambda: MaskedError(lambda *given: patches(*given).repeat(1, 4), batches, (4, 4)),
        "tokenizer": lambda: TokenizerQuality(DiscreteVAE(DVAE).eval(), batches),
        "scenes": lambda: MeanIoU(lambda image: image[0], scenes, 3),
        "probe": lambda: HeldOutProbe(backbone, batches, 2, contextlib.nullcontext),
    }


@pytest.mark.parametrize("name", list(evaluators()))
def test_two_shares_are_one_evaluation(name: str) -> None:
    torch.manual_seed(1)
    evaluator = evaluators()[name]()
    alone = list(evaluator.run())
    assert len(alone) >= 2
    left: list[Any] = []
    with torch.no_grad():
        assert list(evaluator.run(Share(1, 2, left.append))) == []  # a stand-in for the process group: what rank 1 hands over
        assert list(evaluator.run(Share(0, 2, lambda own: [own, *left]))) == alone
