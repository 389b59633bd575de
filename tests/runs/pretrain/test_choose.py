"""What pre-training chooses: plain values from fresh weights, milder ones for a network that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from beitkit.configs.model import BackboneConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.runs.pretrain.choose import ContinuedFacts, OwnRate, choose, head_steps
from beitkit.runs.pretrain.config import PretrainRun

BASE = ContinuedFacts(images=6_400, backbone=BackboneConfig.named("base/16", image_size=(224, 320)))
FRESH = PretrainRun(Path("images"), out=Path("out"))
CONTINUED = replace(FRESH, init=Path("start"))


def test_fresh_weights_get_the_plain_values_without_a_word() -> None:
    config, lines = choose(FRESH, None)
    assert lines == ()
    assert (config.size, config.patch, config.image_size) == ("base", 16, 224)
    assert config.train == TrainConfig()  # 1.5e-3 at 2048
    assert config.optim == OptimConfig()  # 10 epochs of warm-up
    assert config.loop == LoopConfig()


def test_a_start_is_spared_and_every_choice_has_its_reason() -> None:
    config, lines = choose(CONTINUED, BASE)
    assert (config.size, config.patch, config.image_size) == ("base", 16, (224, 320))
    assert (config.train.lr, config.train.epochs, config.optim.warmup_epochs) == (5e-4, 30.0, 3.0)
    assert config.optim.layer_decay == 0.9
    assert config.loop.evaluate_every == 300  # of 3,000 steps
    assert [line.split()[0] for line in lines] == [
        "--epochs",
        "--lr",
        "--optim.warmup-epochs",
        "--loop.evaluate-every",
        "--optim.layer-decay",
    ]
    assert all(line.partition(": ")[2] for line in lines)


def test_the_rate_is_a_third_of_that_of_the_run_that_made_it() -> None:
    own = OwnRate(peak=4e-3, batch=32, was_continued=False)
    config, lines = choose(CONTINUED, replace(BASE, own=own))
    lr = config.train.lr
    assert lr is not None
    assert lr * config.optim.scale(32) == pytest.approx(4e-3 / 3)
    assert any("a third of its own run's, which would undo it (0.004 at 32)" in line for line in lines)
    again, _ = choose(CONTINUED, replace(BASE, own=own._replace(was_continued=True)))
    assert again.train.lr == pytest.approx(3 * lr)


def test_what_is_given_stays() -> None:
    given = replace(
        CONTINUED,
        image_size=96,
        train=TrainConfig(steps=50, lr=1e-4),
        optim=OptimConfig(warmup_steps=3, layer_decay=1.0),
        loop=LoopConfig(evaluate_every=7),
    )
    config, lines = choose(given, BASE)
    assert lines == ()
    assert replace(config, size=None, patch=None) == given


@pytest.mark.parametrize(("depth", "decay"), [(12, 0.9), (24, 0.95)])
def test_deep_networks_have_a_flatter_layer_decay(depth: int, decay: float) -> None:
    config, _ = choose(CONTINUED, replace(BASE, backbone=replace(BASE.backbone, depth=depth)))
    assert config.optim.layer_decay == decay
    assert config.size == ("base" if depth == 12 else None)


def test_a_fresh_head_gets_a_tenth_of_the_run_alone_up_to_a_limit() -> None:
    assert [head_steps(CONTINUED, steps)[0] for steps in (40, 4_000, 40_000)] == [4, 400, 1_000]
    assert head_steps(replace(CONTINUED, head_steps=0), 40)[0] == 0
