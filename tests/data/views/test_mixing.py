"""Mixup and CutMix against timm's, given the same lambda and centers, and against their distributions."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from beitkit.configs.data import PAPER_AUGMENT, AugmentConfig
from beitkit.contracts import Batch
from beitkit.data.views.mixing import Mix, draw_mix, mix_images, mixed

MIXUP, CUTMIX = AugmentConfig(mixup=0.8, cutmix=0.0), AugmentConfig(mixup=0.0, cutmix=1.0)


def batches(count: int, size: int = 6) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randn(size, 3, 12, 20, generator=generator)
        yield {"images": images, "labels": torch.randint(5, (size,), generator=generator), "index": torch.arange(size)}


@pytest.mark.parametrize("augment", [MIXUP, CUTMIX])
def test_a_batch_is_mixed_as_by_timm(timm_library: Any, monkeypatch: pytest.MonkeyPatch, augment: AugmentConfig) -> None:
    theirs = importlib.import_module("timm.data.mixup")
    mixer = theirs.Mixup(label_smoothing=0.0, num_classes=5)
    for seed in range(20):
        (batch,) = batches(1)
        share = random.Random(seed).uniform(0.1, 0.9)
        centers = [random.Random(seed + 100).randrange(12), random.Random(seed + 200).randrange(20)]
        drawn = iter(centers)
        monkeypatch.setattr(mixer, "_params_per_batch", lambda share=share: (share, augment is CUTMIX))
        monkeypatch.setattr(theirs.np.random, "randint", lambda *_, drawn=drawn, **__: next(drawn))
        images, targets = mixer(batch["images"].clone(), batch["labels"])

        class Drawn(random.Random):
            """Draws what timm was given."""

            given = iter(centers)

            def betavariate(self, alpha: float, beta: float) -> float:
                assert alpha == beta == (augment.cutmix or augment.mixup)
                return share  # noqa: B023

            def randrange(self, *_: Any) -> int:  # type: ignore[override]
                return next(self.given)

        mix = draw_mix(augment, (12, 20), Drawn(seed))
        one_hot = F.one_hot(batch["labels"], 5).float()
        assert torch.allclose(mix_images(batch["images"], mix), images, atol=1e-6)
        assert torch.allclose(mix.share * one_hot + (1 - mix.share) * one_hot.flip(0), targets, atol=1e-6)


def test_the_stage_mixes_targets_as_it_mixes_pixels() -> None:
    for plain, batch in zip(batches(8), mixed(batches(8), PAPER_AUGMENT, classes=5, seed=1, first=0), strict=True):
        assert batch["targets"].dtype == torch.float32
        assert torch.allclose(batch["targets"].sum(1), torch.ones(6))
        # Which share of its own pixels an image kept, by least squares against its partner.
        own, other = plain["images"], plain["images"].flip(0)
        share = ((batch["images"] - other) * (own - other)).sum() / (own - other).square().sum()
        kept = F.one_hot(plain["labels"], 5) * share + F.one_hot(plain["labels"].flip(0), 5) * (1 - share)
        assert torch.allclose(batch["targets"], kept, atol=0.12)  # CutMix: the share of noise in a box is nearly its area
        assert torch.equal(batch["index"], plain["index"])
        assert torch.equal(plain["labels"], batch["labels"])


def test_a_batch_is_mixed_by_its_number() -> None:
    whole = list(mixed(batches(6), PAPER_AUGMENT, classes=5, seed=3, first=0))
    late = list(mixed(itertools.islice(batches(6), 4, None), PAPER_AUGMENT, classes=5, seed=3, first=4))
    other = list(mixed(batches(6), PAPER_AUGMENT, classes=5, seed=4, first=0))
    assert all(torch.equal(a[key], b[key]) for a, b in zip(whole[4:], late, strict=True) for key in a)
    assert not any(torch.equal(a["images"], b["images"]) for a, b in zip(whole, other, strict=True))


def test_an_odd_batch_keeps_its_middle_image() -> None:
    for plain, batch in zip(
        batches(10, size=5), mixed(batches(10, size=5), PAPER_AUGMENT, classes=5, seed=0, first=0), strict=True
    ):
        assert torch.allclose(batch["images"][2], plain["images"][2], atol=1e-6)
        assert torch.allclose(batch["targets"][2], F.one_hot(plain["labels"][2], 5).float())
        assert not torch.equal(batch["images"][0], plain["images"][0])


def test_targets_with_several_labels_are_mixed_too() -> None:
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    (batch,) = mixed([{"images": torch.randn(2, 1, 8, 8), "targets": targets}], MIXUP, classes=3, seed=0, first=0)
    share = float(batch["targets"][0, 0])
    assert 0 < share < 1
    expected = torch.tensor([[share, share, 1 - share], [1 - share, 1 - share, share]])
    assert torch.allclose(batch["targets"], expected)


def test_lambda_and_the_choice_follow_their_distributions() -> None:
    drawn = [draw_mix(PAPER_AUGMENT, (224, 224), random.Random(seed)) for seed in range(4000)]
    blends = torch.tensor([mix.share for mix in drawn if mix.box is None])
    assert len(blends) == pytest.approx(2000, abs=120)
    assert blends.mean() == pytest.approx(0.5, abs=0.03)
    assert blends.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(a, a)
    for share, box in drawn:
        if box is not None:
            top, bottom, left, right = box
            assert 0 <= top <= bottom <= 224
            assert 0 <= left <= right <= 224
            assert share == pytest.approx(1 - (bottom - top) * (right - left) / 224**2)
    rarely = AugmentConfig(mixup=0.8, cutmix=1.0, mix_probability=0.25)
    untouched = sum(draw_mix(rarely, (8, 8), random.Random(seed)) == Mix(1.0, None) for seed in range(2000))
    assert untouched == pytest.approx(1500, abs=80)
