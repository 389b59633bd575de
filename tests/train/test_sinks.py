"""Numbers sent elsewhere: what each program is told, by stand-ins of the same interface, and TensorBoard's files read back."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from beitkit.errors import UserError
from beitkit.train import sinks
from beitkit.train.journal import Journal
from beitkit.train.sinks import SINKS, Tracker


class Recorder:
    """Remembers the calls of all its functions."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def function(self, name: str, returns: object = None) -> Any:
        def call(*arguments: object, **named: object) -> object:
            self.calls.append((name, arguments, named))
            return returns

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Stand-ins of wandb, trackio and mlflow."""
    found = Recorder()
    run = SimpleNamespace(log=found.function("wandb.log"), finish=found.function("wandb.finish"))
    client = SimpleNamespace(
        get_experiment_by_name=found.function("get_experiment"),
        create_experiment=found.function("create_experiment", "7"),
        create_run=found.function("create_run", SimpleNamespace(info=SimpleNamespace(run_id="r1"))),
        log_param=found.function("param"),
        log_metric=found.function("metric"),
        set_terminated=found.function("terminated"),
    )
    modules: dict[str, dict[str, Any]] = {
        "wandb": {"init": found.function("wandb.init", run)},
        "trackio": {name: found.function(f"trackio.{name}") for name in ("init", "log", "finish")},
        "mlflow": {"MlflowClient": lambda: client},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: name in modules or None)
    return found


def logged(folder: Path, name: Any, step: int = 0) -> str:
    """Two events and a note after a start at this step; returns what the run said."""
    stream = io.StringIO()
    journal = Journal(folder / "journal.jsonl", stream=stream, tracker=Tracker(name, folder, {"train.lr": 0.1, "out": "x"}))
    journal.rewind(step)
    journal.record("train", step + 10, loss=1.5, accuracy=math.nan)
    journal.record("note", step + 10, text="a word")
    journal.record("evaluate", step + 10, **{"val/top1": 0.5})
    journal.close()
    return stream.getvalue()


def test_wandb_goes_on_with_the_run_it_began(tmp_path: Path, recorder: Recorder) -> None:
    assert logged(tmp_path / "mine", "wandb") == ""
    assert logged(tmp_path / "mine", "wandb", 10) == ""
    first, second = (named for _, named in recorder.named("wandb.init"))
    assert (first["project"], first["name"], first["resume"]) == ("beitkit", "mine", "allow")
    assert first["config"] == {"train.lr": 0.1, "out": "x"}
    assert first["id"] == second["id"]
    assert [(values[0], named["step"]) for values, named in recorder.named("wandb.log")] == [
        ({"loss": 1.5}, 10),
        ({"val/top1": 0.5}, 10),
        ({"loss": 1.5}, 20),
        ({"val/top1": 0.5}, 20),
    ]
    assert len(recorder.named("wandb.finish")) == 2


def test_trackio(tmp_path: Path, recorder: Recorder) -> None:
    logged(tmp_path / "mine", "trackio")
    logged(tmp_path / "mine", "trackio", 10)
    first, second = (named for _, named in recorder.named("trackio.init"))
    assert first["name"] == second["name"]
    assert recorder.named("trackio.log")[0] == (({"loss": 1.5},), {"step": 10})
    assert len(recorder.named("trackio.finish")) == 2


def test_mlflow(tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    logged(tmp_path / "mine", "mlflow")
    logged(tmp_path / "mine", "mlflow", 10)
    assert recorder.named("create_experiment") == [(("cells",), {})]
    assert recorder.named("create_run") == [(("7",), {"run_name": "mine"})]
    assert recorder.named("param") == [(("r1", "train.lr", "0.1"), {}), (("r1", "out", "x"), {})]
    assert recorder.named("metric")[1] == (("r1", "val/top1", 0.5), {"step": 10})
    assert recorder.named("terminated") == [(("r1",), {})] * 2


def test_one_that_fails_is_switched_off_with_one_warning(tmp_path: Path, recorder: Recorder) -> None:
    def broken(values: object, step: int) -> None:
        raise ConnectionError("no route\nto host")

    sys.modules["trackio"].log = broken  # type: ignore[attr-defined]
    said = logged(tmp_path, "trackio")
    assert said == "warning: trackio failed and is switched off, the run goes on (no route to host)\n"
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["train", "note", "evaluate"]
    assert recorder.named("trackio.finish") == []


def test_without_it_nothing_is_imported_or_written(tmp_path: Path, recorder: Recorder) -> None:
    assert logged(tmp_path, None) == ""
    assert recorder.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_package_that_is_missing_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    for name in SINKS:
        with pytest.raises(UserError, match=rf"`log='{name}'` needs {name}; install beitkit\[{name}\]"):
            Tracker(name, tmp_path, {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_hold_what_was_logged_and_a_continued_run_replaces_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert logged(tmp_path, "tensorboard") == ""
    assert logged(tmp_path, "tensorboard", 10) == ""
    assert logged(tmp_path, "tensorboard", 0) == ""  # went back: what came after step 0 counts no more
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "val/top1"}
    assert [(event.step, event.value) for event in found.Scalars("val/top1")] == [(10, 0.5)]
