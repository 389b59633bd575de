"""What is said about the time of a run before it begins."""

import pytest

from beitkit.configs.model import BackboneConfig, MaskedImageModelConfig
from beitkit.configs.train import MachineConfig
from beitkit.planning.rates import Measured
from beitkit.planning.workload import Workload
from beitkit.runs.training import forecast as module
from beitkit.runs.training.forecast import forecast
from beitkit.train.machine.runtime import start_runtime
from beitkit.train.schedule import Schedule

RATES = Measured(block=0.05, rest=0.1, update=0.0, tokenizer=0.3, reading=None, allocator=0.0)
"""12 blocks: 0.7 s an image, and 0.3 s for its tokens."""


def workload(name: str = "base/16", image_size: int = 224) -> Workload:
    backbone = BackboneConfig.named(name, image_size=image_size, mask_token=True)
    return Workload(network=MaskedImageModelConfig(backbone=backbone, vocabulary=1024), predicted=backbone.grid[0])


def schedule(steps: int) -> Schedule:
    return Schedule(steps, 0, 64, 10.0, 1e-3, 1e-5, seed=0)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "glance", lambda *arguments, **options: RATES)


def test_the_time_is_that_of_all_steps() -> None:
    said = forecast(workload(), schedule(100), 64, 1.0, start_runtime(MachineConfig(device="cpu", threads=1)))
    assert said is not None
    assert said.startswith("about 1 h 46 min on this machine: 1 images/s")  # 100 steps of 64 images of a second
    assert "size" not in said


def test_tokens_that_are_stored_are_not_computed_again() -> None:
    said = forecast(workload(), schedule(100), 64, 0.0, start_runtime(MachineConfig(device="cpu", threads=1)))
    assert said is not None
    assert said.startswith("about 1 h 14 min")  # 6,400 images of 0.7 s


def test_days_come_with_the_sizes_that_take_hours() -> None:
    said = forecast(workload(), schedule(4000), 64, 1.0, start_runtime(MachineConfig(device="cpu", threads=1)))
    assert said is not None
    assert said.startswith("about 2 d 23 h")
    assert said.index("`size='small'`") < said.index("`size='tiny'`") < said.index("`size='nano'`")
    assert "large" not in said


def test_a_run_of_minutes_is_begun_without_a_word() -> None:
    assert forecast(workload("nano/4", 32), schedule(100), 64, 1.0, start_runtime(MachineConfig(device="cpu"))) is None
