"""Two processes do what one does, and end together."""

import json
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from beitkit.errors import UserError
from beitkit.train.machine import processes
from beitkit.train.machine.launch import Rank

PROGRAM = Path(__file__).parents[1] / "two_processes.py"
STEPS, PASSES = 8, 4


class Found(NamedTuple):
    """What the two processes left behind."""

    folder: Path
    first: dict[str, Any]
    second: dict[str, Any]

    def losses(self, run: str) -> list[float]:
        return [event["loss"] for event in self.events(run) if event["kind"] == "train"]

    def events(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / run / "journal.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, launch_two: Callable[[list[str]], list[tuple[int, str]]]) -> Found:
    folder = tmp_path_factory.mktemp("two")
    ended = launch_two([str(PROGRAM), str(folder)])
    assert [code for code, _ in ended] == [0, 3], ended
    states = (torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in (0, 1))
    return Found(folder, *states)


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one["state"].keys() == other["state"].keys()
    for name, tensor in one["state"].items():
        torch.testing.assert_close(tensor, other["state"][name], rtol=tolerance, atol=tolerance, msg=name)


def test_two_processes_end_where_one_does(found: Found) -> None:
    assert found.losses("two") == pytest.approx(found.losses("one"), rel=1e-6)
    assert len(found.losses("two")) == STEPS
    assert_close(found.first["two"], found.first["one"], 1e-5)
    assert_close(found.second["two"], found.first["two"], 0)


def test_each_makes_its_own_passes_in_order(found: Found) -> None:
    assert found.first["two"]["seen"] == list(range(0, STEPS * PASSES, 2))
    assert found.second["two"]["seen"] == list(range(1, STEPS * PASSES, 2))
    assert found.first["one"]["seen"] == list(range(STEPS * PASSES))


def test_a_run_continues_on_another_number_of_processes(found: Found) -> None:
    assert found.first["legs"] == [[0, 2, 4, 6, 8, 10], [*range(12, 20)], [*range(20, 32, 2)]]
    assert found.second["legs"] == [[1, 3, 5, 7, 9, 11], [*range(21, 32, 2)]]
    assert_close(found.first["continued"], found.first["one"], 1e-5)
    assert found.losses("legs") == pytest.approx(found.losses("one"), rel=1e-5)


def test_processes_share_an_evaluation_to_the_last_bit(found: Found) -> None:
    shared, alone = found.first["evaluated"]
    assert shared == alone
    assert dict(alone)["batches"] == 7
    assert found.second["evaluated"][0] == [], "rank 0 has the result"
    metrics = [
        [event["val/error"] for event in found.events(run) if event["kind"] == "evaluate"]
        for run in ("evaluated-one", "evaluated-two")
    ]
    assert len(metrics[1]) == 2
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-6)  # the weights differ by rounding


def test_what_one_process_cannot_evaluate_stops_both_with_its_reason_and_a_checkpoint(found: Found) -> None:
    assert found.first["broken"] == found.second["broken"] == "image 5 cannot be read"
    assert (found.folder / "broken/checkpoints/step-00000004.json").exists()


def test_codes_start_and_revive_alike(found: Found) -> None:
    for name, tensor in found.first["codes of two"]["state"].items():
        assert torch.equal(tensor, found.second["codes of two"]["state"][name]), name
    assert found.losses("codes-two") == pytest.approx(found.losses("codes-one"), rel=1e-4)
    counts = [found.first[f"codes of {name}"]["state"]["revival.batches"] for name in ("one", "two")]
    assert counts == [10, 10]  # 16 passes in steps of 2; revived by the first step that finds 5 or more counted, after 6
    assert_close(found.first["codes of two"], found.first["codes of one"], 1e-3)


def test_a_step_that_is_not_finite_in_one_process_is_applied_in_none(found: Found) -> None:
    assert_close(found.second["poisoned two"], found.first["poisoned two"], 0)
    assert_close(found.first["poisoned two"], found.first["poisoned one"], 1e-5)
    notes = [event for event in found.events("poisoned-two") if event["kind"] == "note"]
    assert [note["step"] for note in notes] == [3]  # pass 9, made by the second process


def test_a_signal_to_one_stops_both_after_the_same_step(found: Found) -> None:
    said, code = found.first["stopped"]
    assert found.second["stopped"] == (said, code)
    assert said.startswith("stopped after step 4 of 8")  # the signal came with pass 13
    assert code == 128 + signal.SIGTERM
    assert [path.name for path in (found.folder / "stopped" / "checkpoints").glob("*.json")] == ["step-00000004.json"]


def test_other_inputs_in_one_process_are_refused(found: Found) -> None:
    assert found.first["pinned"] == (
        "processes 1 and 0 differ in the images that they read; give all machines the same files under the same paths"
    )
    assert json.loads((found.folder / "run" / "inputs.json").read_text()) == {"images": "same"}


def test_the_end_of_a_process_ends_the_others(found: Found) -> None:
    assert found.first["lost"].startswith("another process of this run stopped, its message says why")


def test_a_process_that_waits_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(processes, "SILENT_WAIT", 0.2)
    monkeypatch.setattr(processes, "MEETING_TIME", timedelta(seconds=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = Rank(rank=1, world_size=2, address="127.0.0.1", port=port)
    with pytest.raises(UserError, match=f"process 1 of 2 could not meet the others at 127.0.0.1:{port}"):
        processes.join(alone, torch.device("cpu"))
    assert f"beitkit: process 1 of 2 waits for the others at 127.0.0.1:{port}" in capfd.readouterr().err


def test_processes_that_meet_at_once_say_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(processes, "SILENT_WAIT", 0.2)
    assert processes.join(Rank(), torch.device("cpu")) is processes.ALONE
    time.sleep(0.5)
    assert capfd.readouterr().err == ""
