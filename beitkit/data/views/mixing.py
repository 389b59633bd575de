"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): each image of a batch is mixed with the one at the mirrored position.

One draw per batch, from the number of the batch, so that a resumed run mixes as an uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from beitkit.configs.data import AugmentConfig
from beitkit.configs.model import Pair
from beitkit.contracts import Batch
from beitkit.data.seeds import derived_seed


class Mix(NamedTuple):
    """How the images of a batch are mixed with their partners."""

    share: float
    """What an image keeps of itself, of its pixels as of its target; the paper's lambda."""
    box: tuple[int, int, int, int] | None
    """CutMix: top, bottom, left, right of what the partner shows through; None blends whole images."""


def mixed(
    stream: Iterable[Batch], augment: AugmentConfig, *, classes: int, seed: int, first: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Batches with mixed `images` (normalized) and `targets` float32 (b, classes), from `labels` or from `targets`.

    Args:
        stream: batches from number `first` on.
        augment: strength of Mixup and CutMix, decided.
        classes: how many there are.
        seed: of the run.
        first: number of this process's first batch, as `start_batch` in `training_stream`.
        rank: number of this process.
        world: how many processes share the run; batch i of this one is number i * world + rank of the run.
    """
    for number, batch in enumerate(stream, start=first):
        images = batch["images"]
        targets = batch["targets"] if "targets" in batch else _one_hot(batch["labels"], classes)
        mix = draw_mix(
            augment, (images.shape[2], images.shape[3]), random.Random(derived_seed(seed, "mix", number * world + rank))
        )
        yield batch | {"images": mix_images(images, mix), "targets": mix.share * targets + (1 - mix.share) * targets.flip(0)}


def draw_mix(augment: AugmentConfig, image_size: Pair, rng: random.Random) -> Mix:
    """Mixup or CutMix, and how much of it: lambda ~ Beta(a, a); of a clipped box the lambda of what is left of it."""
    mixup, cutmix = augment.mixup or 0.0, augment.cutmix or 0.0
    if rng.random() >= augment.mix_probability:
        return Mix(1.0, None)
    is_cut = cutmix > 0 and (mixup == 0 or rng.random() < augment.switch_probability)
    alpha = cutmix if is_cut else mixup
    share = rng.betavariate(alpha, alpha)
    if not is_cut:
        return Mix(share, None)
    height, width = image_size
    side = (1 - share) ** 0.5
    top, bottom = _cut(height, int(height * side), rng.randrange(height))
    left, right = _cut(width, int(width * side), rng.randrange(width))
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix_images(images: Float[Tensor, "b c h w"], mix: Mix) -> Float[Tensor, "b c h w"]:
    """Each image with a share of the one at its mirror place; the middle one of an odd batch stays itself."""
    if mix.box is None:
        return mix.share * images + (1 - mix.share) * images.flip(0)
    top, bottom, left, right = mix.box
    cut = images.clone()
    cut[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return cut


def _one_hot(labels: Int64[Tensor, " b"], classes: int) -> Float[Tensor, "b classes"]:
    """As `F.one_hot`, which looks at the labels on the host."""
    return torch.zeros(len(labels), classes, device=labels.device).scatter_(1, labels[:, None], 1.0)


def _cut(length: int, side: int, center: int) -> Pair:
    """Beginning and end of a side around a center, clipped to [0, length]."""
    return max(0, center - side // 2), min(length, center + (side + 1) // 2)
