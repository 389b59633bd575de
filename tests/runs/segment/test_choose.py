"""What segmentation chooses: the official values where they fit, short and small runs elsewhere, and what is given stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.train import DeviceKind, LoopConfig, OptimConfig, TrainConfig
from beitkit.runs.segment.choose import Origin, SegmentFacts, choose_scenes
from beitkit.runs.segment.config import SegmentRun

RUN = SegmentRun(Path("scenes"), model=Path("pre"), out=Path("out"))
ADE20K = SegmentFacts(images=20_210, side=512, start="pre-trained", patch=16, width=768, depth=12, device="cuda")
CAMVID = SegmentFacts(images=367, side=360, start="pre-trained", patch=8, width=96, depth=4, device="cpu")


def image_size(found: SegmentFacts) -> int | None:
    return choose_scenes(RUN, found)[0].image_size


def steps(found: SegmentFacts, run: SegmentRun = RUN) -> int | None:
    return choose_scenes(run, found)[0].train.steps


def rate(found: SegmentFacts) -> float | None:
    return choose_scenes(RUN, found)[0].train.lr


def test_on_ade20k_it_is_the_official_recipe_but_for_its_length() -> None:
    config = choose_scenes(RUN, ADE20K)[0]
    assert (config.image_size, config.train.batch_size, config.train.lr, config.drop_path) == (512, 16, 7e-4, 0.1)
    assert (config.optim.layer_decay, config.optim.warmup_steps, config.optim.weight_decay) == (0.65, 1500, 0.05)
    assert (config.optim.schedule, config.optim.lr_batch, config.optim.min_lr, config.optim.clip) == ("linear", 16, 0.0, None)
    assert config.train.steps == 101_050  # 80 passes of 20,210 / 16 steps


@pytest.mark.parametrize(
    ("side", "patch", "device", "expected"),
    [
        (512, 16, "cuda", 512),
        (3000, 16, "cuda", 512),
        (511, 16, "cuda", 480),
        (360, 16, "cuda", 352),
        (64, 16, "cuda", 64),
        (5, 16, "cuda", 64),
        (3000, 8, "cuda", 256),
        (360, 8, "cpu", 128),
        (127, 8, "cpu", 112),
        (1, 8, "cpu", 32),
        (3000, 16, "mps", 512),
    ],
)
def test_a_crop_is_whole_pairs_of_patches_within_the_image_and_the_device(
    side: int, patch: int, device: DeviceKind, expected: int
) -> None:
    assert image_size(replace(ADE20K, side=side, patch=patch, device=device)) == expected


@pytest.mark.parametrize(
    ("images", "device", "expected"),
    [
        (1, "cpu", 300),
        (30, "cpu", 300),
        (31, "cpu", 310),
        (300, "cpu", 3000),
        (10**6, "cpu", 3000),
        (1, "cuda", 1000),
        (32_000, "cuda", 160_000),
        (10**6, "cuda", 160_000),
        (10**6, "mps", 20_000),
    ],
)
def test_the_length_is_80_passes_between_floor_and_ceiling(images: int, device: DeviceKind, expected: int) -> None:
    assert steps(replace(ADE20K, images=images, device=device)) == expected


def test_accumulated_passes_make_fewer_steps_of_more_images() -> None:
    found = replace(ADE20K, images=100, device="cpu")
    assert steps(found) == 1000
    assert steps(found, replace(RUN, loop=LoopConfig(accumulate=2))) == 500


def test_a_batch_is_never_larger_than_the_set() -> None:
    batches = [choose_scenes(RUN, replace(CAMVID, images=count))[0].train.batch_size for count in (1, 7, 8, 9)]
    assert batches == [1, 7, 8, 8]


@pytest.mark.parametrize(
    ("start", "width", "expected"),
    [("pre-trained", 768, 7e-4), ("fine-tuned", 768, 3e-5), ("scratch", 768, 1e-3), ("pre-trained", 192, 1.4e-3)],
)
def test_the_rate_follows_the_start_and_the_width(start: Origin, width: int, expected: float) -> None:
    assert rate(replace(ADE20K, start=start, width=width)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("start", "depth", "decay", "drop_path"),
    [
        ("pre-trained", 11, 0.8, 0.0),
        ("pre-trained", 12, 0.65, 0.1),
        ("pre-trained", 13, 0.65, 0.2),
        ("fine-tuned", 11, 0.8, 0.0),
        ("fine-tuned", 24, 0.9, 0.2),
        ("scratch", 12, 1.0, 0.1),
    ],
)
def test_layer_decay_and_drop_path_follow_start_and_depth(start: Origin, depth: int, decay: float, drop_path: float) -> None:
    config = choose_scenes(RUN, replace(ADE20K, start=start, depth=depth))[0]
    assert (config.optim.layer_decay, config.drop_path) == (decay, drop_path)


def test_frozen_features_have_no_layer_decay_and_no_drop_path() -> None:
    config = choose_scenes(replace(RUN, freeze=True), ADE20K)[0]
    assert (config.optim.layer_decay, config.drop_path) == (1.0, 0.0)


def test_the_warmup_is_at_most_a_tenth_of_the_run() -> None:
    short = replace(RUN, train=TrainConfig(steps=40, batch_size=None, lr=None))
    assert choose_scenes(short, ADE20K)[0].optim.warmup_steps == 4
    in_epochs = replace(RUN, train=TrainConfig(epochs=10.0, batch_size=10, lr=None))
    assert choose_scenes(in_epochs, replace(CAMVID, images=100))[0].optim.warmup_steps == 10
    stated = replace(RUN, optim=replace(RUN.optim, warmup_epochs=2.0))
    assert choose_scenes(stated, ADE20K)[0].optim == replace(stated.optim, layer_decay=0.65)


def test_every_choice_is_said_once_with_its_reason() -> None:
    lines = choose_scenes(RUN, CAMVID)[1]
    assert "--image-size 128: images of 360 pixels, patches of 8, at most 128 on cpu" in lines
    assert "--steps 3000: 80 passes over 367 images, between 300 and 3000 on cpu" in lines
    assert "--optim.layer-decay 0.8: pre-trained, 4 blocks" in lines
    assert len({line.partition(":")[0] for line in lines}) == len(lines) == 7


def test_what_is_given_stays_and_is_not_mentioned() -> None:
    run = replace(
        RUN,
        image_size=96,
        drop_path=0.3,
        train=TrainConfig(steps=300, batch_size=7, lr=0.5),
        optim=OptimConfig(warmup_steps=3, layer_decay=0.9),
    )
    assert choose_scenes(run, CAMVID) == (run, ())


def test_choosing_again_changes_nothing_and_the_choice_survives_json() -> None:
    config = choose_scenes(RUN, ADE20K)[0]
    assert choose_scenes(config, CAMVID) == (config, ())
    assert from_json(SegmentRun, to_json(config)) == config
