"""What fine-tuning chooses: the paper's recipe for many images, short and mild runs for few, and what is given stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import NO_AUGMENT, AugmentConfig, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.errors import UserError
from beitkit.runs.finetune.choose import FinetuneFacts, choose
from beitkit.runs.finetune.config import FinetuneRun

RUN = FinetuneRun(Path("images"), model=Path("pre"), out=Path("out"))
IMAGENET = FinetuneFacts(
    images=1_281_167,
    side=375,
    imbalance=1.8,
    width=768,
    depth=12,
    patch=16,
    image_size=(224, 224),
    crop_share=0.875,
    device="cuda",
)
FEW = replace(IMAGENET, images=500, side=300, device="cpu")


def test_for_many_images_it_is_the_paper_s_recipe() -> None:
    config = choose(RUN, IMAGENET)[0]
    assert config.train.epochs == 100
    assert config.train.lr == 4e-3
    assert config.optim.layer_decay == 0.65
    assert config.drop_path == 0.1
    chosen = config.augment
    assert (chosen.operations, chosen.magnitude, chosen.erasing, chosen.mixup, chosen.cutmix) == (2, 9, 0.25, 0.8, 1)
    large = choose(RUN, replace(IMAGENET, width=1024, depth=24))[0]
    assert (large.train.epochs, large.train.lr, large.optim.layer_decay, large.drop_path) == (50, 1e-3, 0.75, 0.2)


def test_narrow_networks_get_more_of_the_paper_s_rate() -> None:
    """The root of 768 / width; wide ones are not slowed down by it."""
    for width, expected in ((96, 4e-3 * 8**0.5), (192, 8e-3), (768, 4e-3), (800, 4e-3)):
        assert choose(replace(RUN, head_init="zero"), replace(FEW, width=width))[0].train.lr == pytest.approx(expected, abs=1e-4)


def test_with_few_images_a_head_is_fitted_first_and_all_then_learns_at_half_the_rate() -> None:
    config = choose(RUN, FEW)[0]
    assert (config.head_init, config.train.lr, config.pooling) == ("probe", 2e-3, "mean")
    assert choose(RUN, replace(FEW, can_be_probed=False))[0].head_init == "zero"
    assert choose(RUN, IMAGENET)[0].head_init == "zero"
    scratch = choose(replace(RUN, model=None, scratch=True, size="base"), replace(FEW, image_size=None))[0]
    assert scratch.head_init == "zero"
    kept = choose(RUN, replace(FEW, has_head=True))[0]
    assert (kept.head_init, kept.pooling) == (None, None)


@pytest.mark.parametrize(
    ("side", "shown", "patch", "expected"),
    [
        (32, 32, 4, ("grid", 8)),
        (28, 28, 7, ("grid", 4)),
        (64, 64, 4, ("grid", 8)),
        (28, 128, 16, ("grid", 8)),
        (300, 64, 8, ("grid", 8)),
        (96, 96, 16, ("mean", None)),
    ],
)
def test_small_images_are_pooled_over_a_grid(side: int, shown: int, patch: int, expected: tuple[str, int | None]) -> None:
    """Also if they are enlarged."""
    config = choose(RUN, replace(IMAGENET, side=side, image_size=(shown, shown), patch=patch))[0]
    assert (config.pooling, config.pool_cells) == expected


def test_for_few_images_the_run_is_short_and_mild() -> None:
    config = choose(RUN, FEW)[0]
    assert config.train.epochs is not None
    steps = config.train.epochs * 500 / 32
    assert config.train.batch_size == 32
    assert steps == pytest.approx(500)
    assert config.optim.warmup_epochs == pytest.approx(config.train.epochs / 10)
    assert (config.augment.mixup, config.augment.cutmix, config.augment.erasing, config.augment.magnitude) == (0, 0, 0, 5)


@pytest.mark.parametrize(("epochs", "is_short"), [(29.0, True), (30.0, True), (129.0, False)])
def test_short_runs_see_images_as_they_are(epochs: float, is_short: bool) -> None:
    """500 images make 15.6 steps of 32 an epoch, so 30 epochs are few steps and 129 are more than 2,000 (decision 018)."""
    config, lines = choose(replace(RUN, train=replace(RUN.train, epochs=epochs)), FEW)
    seen = (config.augment.operations, config.view.crop_scale, config.view.color_jitter)
    assert seen == ((0, (0.6, 1.0), 0.0) if is_short else (2, (0.08, 1.0), 0.4))
    assert any(line.startswith("--view.crop-scale 0.6 1: a run of less than 30") for line in lines) == is_short
    fewer = choose(replace(RUN, train=replace(RUN.train, epochs=100.0)), FEW)[0]
    assert (fewer.augment.operations, fewer.view.crop_scale) == (2, (0.6, 1.0)), "1,563 steps, but each image 100 times"
    many = choose(replace(RUN, train=replace(RUN.train, epochs=29.0)), IMAGENET)[0]
    assert many.augment.operations == 0, "many steps, but each image is seen 29 times only"


@pytest.mark.parametrize("images", [3, 20, 100, 1999, 2000, 10_000, 10**6])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_steps_lie_between_floor_and_ceiling_and_a_batch_fits(images: int, device: str) -> None:
    config = choose(RUN, replace(IMAGENET, images=images, device=device))[0]  # type: ignore[arg-type]
    assert config.train.batch_size is not None
    assert config.train.epochs is not None
    assert 1 <= config.train.batch_size <= max(1, images / 4)
    steps = config.train.epochs * images / config.train.batch_size
    assert steps >= 500 - 1e-6
    assert device == "cuda" or steps <= 2000 + 1e-6


def test_fresh_weights_have_no_layer_decay_and_a_size_of_their_own() -> None:
    run = FinetuneRun(Path("images"), scratch=True, size="nano", patch=4, out=Path("out"))
    alone = replace(IMAGENET, image_size=None, side=33, width=96, depth=4, patch=4)
    config = choose(run, alone)[0]
    assert config.image_size == 32
    assert config.optim.layer_decay == 1
    assert choose(run, replace(alone, side=3000))[0].image_size == 224
    assert choose(run, replace(alone, side=1))[0].image_size == 8


def test_large_images_are_evaluated_uncropped_unless_the_checkpoint_says_otherwise() -> None:
    assert choose(replace(RUN, image_size=384), IMAGENET)[0].crop_share == 1
    assert choose(RUN, IMAGENET)[0].crop_share == 0.875
    assert choose(RUN, replace(IMAGENET, image_size=(384, 384), crop_share=0.95))[0].crop_share == 0.95
    assert choose(replace(RUN, image_size=384, crop_share=0.9), IMAGENET)[0].crop_share == 0.9
    assert choose(RUN, replace(IMAGENET, image_size=(224, 112)))[0].image_size is None


def test_images_of_at_most_32_pixels_are_shown_whole() -> None:
    small = replace(IMAGENET, image_size=(32, 32))
    config, lines = choose(RUN, small)
    assert config.crop_share == 1
    assert "--crop-share 1: up to 32 pixels images are shown whole" in lines
    assert choose(replace(RUN, image_size=33), small)[0].crop_share == 0.875
    assert choose(replace(RUN, image_size=28), IMAGENET)[0].crop_share == 1


def test_every_choice_is_said_with_its_reason_and_nothing_else() -> None:
    lines = choose(RUN, FEW)[1]
    assert "--optim.layer-decay 0.65: pre-trained, 12 blocks" in lines
    assert "--augment.mixup 0: 500 images" in lines
    assert len({line.partition(":")[0] for line in lines}) == len(lines) == 16  # the magnitude of no RandAugment is not
    assert not any("note" in line for line in lines)
    uneven = replace(FEW, imbalance=12.4)
    assert any("--balanced" in line for line in choose(RUN, uneven)[1])
    assert not any("--balanced" in line for line in choose(replace(RUN, balanced=True), uneven)[1])


def test_what_is_given_stays_and_is_not_mentioned() -> None:
    run = replace(
        RUN,
        pooling="mean",
        head_init="zero",
        drop_path=0.3,
        crop_share=0.9,
        train=TrainConfig(steps=300, batch_size=7, lr=0.5),
        augment=NO_AUGMENT,
        view=ViewConfig(),
        optim=OptimConfig(warmup_steps=3, layer_decay=0.9),
        loop=LoopConfig(ema=0.5),
    )
    config, lines = choose(run, FEW)
    assert config == run
    assert lines == ()


def test_choosing_again_changes_nothing_and_the_choice_survives_json() -> None:
    config = choose(RUN, IMAGENET)[0]
    assert choose(config, FEW) == (config, ())
    assert from_json(FinetuneRun, to_json(config)) == config


def test_mixing_waits_for_a_long_run_on_many_images() -> None:
    long = replace(RUN, train=TrainConfig(epochs=40.0, batch_size=None, lr=None))
    assert choose(long, replace(IMAGENET, images=9_999))[0].augment.mixup == 0
    assert choose(long, replace(IMAGENET, images=10_000))[0].augment.mixup == 0.8
    short = replace(RUN, train=TrainConfig(epochs=10.0, batch_size=None, lr=None), augment=AugmentConfig(mixup=0.3))
    assert choose(short, IMAGENET)[0].augment.mixup == 0.3
    assert choose(short, IMAGENET)[0].augment.cutmix == 0
    assert choose(RUN, replace(IMAGENET, side=32))[0].augment.erasing == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says which network to train; give `model`, or `scratch` with `size`"),
        ({"scratch": True}, "nothing says which network"),
        ({"size": "base"}, "nothing says which network"),
        ({"model": Path("pre"), "scratch": True, "size": "base"}, "`size` describes a network for `scratch`, but `model='pre'`"),
        ({"model": Path("pre"), "pooling": "cls"}, "`pooling='cls'` is for a network from scratch"),
        ({"model": Path("pre"), "pooling": "mean", "pool_cells": 2}, "`pool_cells` are those of `pooling='grid'`"),
        ({"model": Path("pre"), "network": NetworkConfig(positions="none")}, "`network` describes"),
        ({"model": Path("pre"), "crop_share": 1.5}, r"`crop_share` must lie in \(0, 1\], got 1.5"),
        ({"model": Path("pre"), "drop_path": 1.3}, r"`drop_path` must lie in \[0, 1\), got 1.3"),
        ({"model": Path("pre"), "image_size": 0}, "`image_size` must be at least 1, got 0"),
        ({"scratch": True, "size": "base", "network": NetworkConfig(drop_path=0.3)}, "give `drop_path=0.3`"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FinetuneRun(Path("images"), out=Path("out"), **options)
