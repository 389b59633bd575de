"""Steps in float16: the scale of the loss, steps that it is too large for, and runs that are cut in the middle."""

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.contracts import Batch, Loss
from beitkit.errors import NumericalError
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.journal import Journal
from beitkit.train.loop import Training, fit
from beitkit.train.machine.runtime import Runtime
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import make_schedule
from beitkit.train.step import LossScale

BATCH, FIRST = 4, 2.0**16
CPU = torch.device("cpu")
OPTIM = OptimConfig(lr_scaling="none", warmup_steps=0, clip=0.02)


class Half(nn.Module):
    """Least squares behind batch norm; `steepness` multiplies the loss, and so the gradients, of the layer in half precision.

    Pass numbers that a batch marks as steep have gradients that no scale above 1 fits.
    """

    def __init__(self, steepness: float = 0.01) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.layer = nn.Linear(3, 1)
        self.steepness = steepness

    def forward(self, batch: Batch, progress: float) -> Loss:
        x = batch["x"]
        y = self.layer(self.norm(x) + 0.1 * torch.randn_like(x))
        error = (y - x.sum(1, keepdim=True)).square().mean()
        # Its value is 0, its gradient is large.
        steep = batch["steep"] * (y - y.detach()).float().sum()
        return Loss(self.steepness * error + steep, {"error": error.detach()})


def stream(start: int, steep: Callable[[int], bool] = lambda number: False) -> Iterator[Batch]:
    number = start
    while True:
        x = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(number))
        yield {"x": x, "steep": torch.tensor(1e5 if steep(number) else 0.0)}
        number += 1


def trained(
    folder: Path,
    steps: int,
    steep: Callable[[int], bool] = lambda number: False,
    *,
    autocast: torch.dtype | None = torch.float16,
    steepness: float = 0.01,
    cut_at: int | None = None,
    **loop,
) -> Half:
    torch.manual_seed(0)
    objective = Half(steepness)
    settings = LoopConfig(**{"log_every": 1, "save_every": 1, "ema": 0.9, **loop})

    def batches(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(stream(start, steep), start):
            if number == cut_at:
                raise ConnectionError
            yield batch

    training = Training(
        schedule=make_schedule(TrainConfig(steps=steps, batch_size=BATCH, lr=0.05), settings, OPTIM, 40, default_epochs=1),
        loop=settings,
        optim=OPTIM,
        runtime=Runtime(CPU, autocast),
        journal=Journal(folder / "journal.jsonl", stream=io.StringIO()),
        checkpoints=Checkpoints(folder / "checkpoints"),
    )
    try:
        fit(objective, batches, parameter_groups(objective, 0.01), training)
    except ConnectionError:
        assert cut_at is not None
    return objective


def events(folder: Path) -> list[dict]:
    timed = ("images_per_second", "data_wait")
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [{key: value for key, value in event.items() if key not in timed} for event in lines]


def course(folder: Path, name: str) -> list[float]:
    return [event[name] for event in events(folder) if event["kind"] == "train"]


def stored(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}.0.safetensors")


def test_the_scale_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWS_AFTER", 3)
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs, ours = torch.amp.GradScaler("cpu", growth_interval=3), LossScale(CPU)
    theirs.scale(weight.sum())
    outcomes = [0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    for overflows in outcomes:
        weight.grad = torch.full((2,), math.inf if overflows else 1.0)
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(1.0), torch.tensor(math.inf if overflows else 1.0))
        assert ours.value.item() == theirs.get_scale()
    assert len({*outcomes}) == 2


def test_a_scale_is_left_alone_by_losses_that_overflow_and_does_not_fall_below_one_half() -> None:
    scale, one, inf = LossScale(CPU), torch.tensor(1.0), torch.tensor(math.inf)
    scale.update(torch.tensor(math.nan), inf)
    assert scale.value.item() == FIRST
    for _ in range(40):
        scale.update(one, inf)
    assert scale.value.item() == 0.5
    scale.value.fill_(2.0**127)
    for _ in range(2 * LossScale.GROWS_AFTER):
        scale.update(one, one)
    assert scale.value.item() == 2.0**127


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_whose_gradients_overflow_changes_nothing_and_halves_the_scale(tmp_path: Path, accumulate: int) -> None:
    steep = range(2 * accumulate, 2 * accumulate + 1).__contains__  # the first pass of step 3
    trained(tmp_path, 4, steep, accumulate=accumulate)
    assert course(tmp_path, "loss_scale") == [FIRST, FIRST, FIRST, FIRST / 2]
    assert course(tmp_path, "refused") == [0, 0, 1, 1]
    assert [event["grad_norm"] is None for event in events(tmp_path) if event["kind"] == "train"] == [False, False, True, False]
    assert not [event for event in events(tmp_path) if event["kind"] == "note"]
    trained(tmp_path / "short", 3, steep, accumulate=accumulate)  # one that ends so has ended well
    before, after, at_end = stored(tmp_path / "short", 2), stored(tmp_path / "short", 3), stored(tmp_path, 4)
    assert {"buffer.norm.running_mean", "average.layer.weight", "step.layer.weight"} <= before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert not torch.equal(at_end["parameter.layer.weight"], after["parameter.layer.weight"])
    assert at_end["step.layer.weight"].item() == 3


def test_refused_steps_are_not_bad_ones_until_the_scale_is_below_one(tmp_path: Path) -> None:
    """17 halvings lead from 2 ** 16 to one half; then three bad steps in a row end the run, which has no checkpoint."""
    with pytest.raises(NumericalError, match="3 steps in a row were not finite, the last was step 20"):
        trained(tmp_path, 40, lambda number: True, save_every=0, log_every=0)
    notes = [event["step"] for event in events(tmp_path) if event["kind"] == "note"]
    assert notes == [18, 19, 20]
    trained(tmp_path / "between", 30, lambda number: number % 2 == 1, max_bad_steps=2)
    assert course(tmp_path / "between", "refused")[-1] == 15


def test_gradients_that_float16_cannot_hold_are_as_in_float32(tmp_path: Path) -> None:
    """Without a scale they would be 0, and AdamW would not move."""
    trained(tmp_path / "exact", 6, autocast=None, steepness=1e-8)
    trained(tmp_path / "half", 6, steepness=1e-8)
    exact, half = (stored(tmp_path / name, 6)["exp_avg.layer.weight"] for name in ("exact", "half"))
    assert 0 < exact.abs().max() < 6e-8
    torch.testing.assert_close(half, exact, rtol=0.02, atol=1e-11)


def test_the_norm_that_is_clipped_and_logged_is_that_without_the_scale(tmp_path: Path) -> None:
    trained(tmp_path / "exact", 6, autocast=None)
    trained(tmp_path / "half", 6)
    exact, half = (course(tmp_path / name, "grad_norm") for name in ("exact", "half"))
    assert max(exact) > OPTIM.clip  # type: ignore[operator]
    assert half == pytest.approx(exact, rel=0.02)


def test_a_run_that_is_cut_and_continued_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWS_AFTER", 3)
    steep = {3, 4, 12}.__contains__
    whole = trained(tmp_path / "whole", 12, steep, accumulate=2)
    for cut_at in (2, 9, 15):
        folder = tmp_path / f"cut-{cut_at}"
        trained(folder, 12, steep, accumulate=2, cut_at=cut_at)
        again = trained(folder, 12, steep, accumulate=2)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name
        assert events(folder) == events(tmp_path / "whole")
    assert len({*course(tmp_path / "whole", "loss_scale")}) > 2
    assert course(tmp_path / "whole", "refused")[-1] == 3


def test_outcomes_that_are_read_late_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steep = {3, 4, 8}.__contains__
    at_once = trained(tmp_path / "at once", 12, steep, log_every=5)
    monkeypatch.setattr("beitkit.train.loop.READ_LATE", {"cpu": 1})
    late = trained(tmp_path / "late", 12, steep, log_every=5)
    assert all(map(torch.equal, at_once.state_dict().values(), late.state_dict().values()))
    assert events(tmp_path / "at once") == events(tmp_path / "late")


@pytest.mark.parametrize("others", [(None, torch.float16), (torch.float16, torch.bfloat16)])
def test_a_run_goes_on_in_another_precision(others: tuple[torch.dtype | None, ...], tmp_path: Path) -> None:
    """As `auto` makes it on another machine; a state that was saved before there was a scale has none."""
    trained(tmp_path, 8, autocast=others[0], cut_at=4)
    trained(tmp_path, 8, autocast=others[1])
    assert len(course(tmp_path, "loss")) == 8
    scaled = [event.get("loss_scale") for event in events(tmp_path)]
    assert scaled == [FIRST if one is torch.float16 else None for one in others for _ in range(4)]
