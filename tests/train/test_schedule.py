"""Golden values of method 4.3: base 1.5e-3, final 1e-5, 1000 steps, warm-up 200 or 50."""

import pytest

from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.errors import UserError
from beitkit.train.schedule import Schedule, cosine, is_due, linear, make_schedule

GOLDEN_200 = {
    0: 0.0,
    1: 7.537688442e-06,
    199: 0.0015,
    200: 0.0015,
    201: 0.0014999942555891956,
    600: 0.000755,
    999: 1.0005744410804437e-05,
}
GOLDEN_50 = {49: 0.0015, 50: 0.0015, 999: 1.0004073600320186e-05}


@pytest.mark.parametrize(("warmup", "golden"), [(200, GOLDEN_200), (50, GOLDEN_50)])
def test_cosine_equals_the_official_schedule(warmup: int, golden: dict[int, float]) -> None:
    for step, value in golden.items():
        assert cosine(step, 1000, warmup, 1.5e-3, 1e-5) == pytest.approx(value, rel=1e-9, abs=1e-18)


def test_epochs_become_steps_and_a_batch_scales_the_rate() -> None:
    train, loop = TrainConfig(epochs=3.0, batch_size=16, lr=1.0, seed=7), LoopConfig(accumulate=2)
    schedule = make_schedule(train, loop, OptimConfig(min_lr=0.5, lr_batch=128, lr_scaling="linear"), 100, default_epochs=9)
    assert (schedule.steps, schedule.images_per_step, schedule.steps_per_epoch, schedule.seed) == (9, 32, 3.125, 7)
    assert (schedule.lr, schedule.min_lr) == (0.25, 0.125)
    assert make_schedule(train, loop, OptimConfig(lr_batch=128, lr_scaling="sqrt"), 100, default_epochs=9).lr == 0.5
    assert make_schedule(train, loop, OptimConfig(lr_scaling="none"), 100, default_epochs=9).lr == 1.0


def test_no_length_given_takes_the_default_epochs() -> None:
    assert make_schedule(TrainConfig(batch_size=10), LoopConfig(), OptimConfig(), 100, default_epochs=7).steps == 70


def test_warmup_in_epochs_takes_at_most_a_tenth_of_the_run() -> None:
    long = make_schedule(TrainConfig(epochs=800.0, batch_size=2048), LoopConfig(), OptimConfig(), 1_281_167, default_epochs=1)
    assert long.warmup == round(10 * 1_281_167 / 2048)
    short = make_schedule(TrainConfig(epochs=20.0, batch_size=10), LoopConfig(), OptimConfig(), 100, default_epochs=1)
    assert short.warmup == 20


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UserError, match="`optim.warmup_steps`"):
        make_schedule(TrainConfig(steps=50), LoopConfig(), OptimConfig(warmup_steps=50), 100, default_epochs=1)
    with pytest.raises(UserError, match="`optim.min_lr` 0.1 is above `lr` 0.01"):
        make_schedule(TrainConfig(lr=0.01), LoopConfig(), OptimConfig(min_lr=0.1), 100, default_epochs=1)
    with pytest.raises(UserError, match="give `epochs` or `steps`, not both"):
        TrainConfig(epochs=1.0, steps=1)


def test_what_learns_later_warms_up_when_it_begins() -> None:
    schedule = Schedule(100, 4, 8, 10.0, 1.0, 0.0, 0)
    assert [schedule.share_at(step, 10) for step in (0, 9, 10, 11, 13, 14, 99)] == [0, 0, 0.25, 0.5, 1, 1, 1]
    assert schedule.share_at(0, 0) == 1.0
    assert schedule._replace(warmup=0).share_at(10, 10) == 1.0


def test_is_due_fires_every_nth_and_after_the_last() -> None:
    assert [step for step in range(1, 11) if is_due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if is_due(step, 0, 10)] == [10]


def test_linear_is_the_poly_policy_of_the_official_segmentation_runs() -> None:
    """lr (1 - it / max), times 1 - (1 - it / W) (1 - 1e-6) for it < W (method 7.4)."""
    base, steps, warmup = 7e-4, 160_000, 1500
    for step in (0, 1, 749, 1499):
        expected = base * (1 - step / steps) * (1 - (1 - step / warmup) * (1 - 1e-6))
        assert linear(step, steps, warmup, base, 0.0) == pytest.approx(expected, rel=1e-12)
    assert linear(0, steps, warmup, base, 0.0) == pytest.approx(base * 1e-6)
    assert linear(80_000, steps, warmup, base, 0.0) == pytest.approx(base / 2)
    assert linear(159_999, steps, warmup, base, 0.0) == pytest.approx(base / 160_000)
    schedule = make_schedule(
        TrainConfig(steps=100, batch_size=16, lr=base), LoopConfig(), OptimConfig(schedule="linear", lr_batch=16, min_lr=0.0),
        1000, default_epochs=1,
    )  # fmt: skip
    assert schedule.lr_at(50) == pytest.approx(base / 2)
