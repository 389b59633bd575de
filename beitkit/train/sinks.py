"""Other places for the numbers of a run, besides its journal: TensorBoard, Weights & Biases, Trackio and MLflow.

Nothing is imported or sent unless a run asks for one with `log`. Where things go is said as each of these programs says it itself
(WANDB_PROJECT, MLFLOW_TRACKING_URI and so on). One that fails is switched off with one warning, and the run goes on.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.configs.train import SinkName
from beitkit.errors import UserError
from beitkit.files import read_json
from beitkit.system import write_atomically

PROJECT = "beitkit"
"""Where the environment names no other."""
IDS = "tracking.json"
"""In a run folder: by which names these programs know the run, so that a continued one goes on there."""


class Sink(NamedTuple):
    """Where numbers go."""

    log: Callable[[Mapping[str, float], int], object]
    """Takes numbers by name, and the step they are of."""
    close: Callable[[], object]


class TrackedRun(NamedTuple):
    """What a sink is told of the run."""

    folder: Path
    config: Mapping[str, Any]
    """Flat, names dotted."""
    step: int
    """After which it begins or goes on."""

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return self.folder.absolute().name

    def known_as(self, sink: SinkName, make: Callable[[], str]) -> str:
        """The id of the run there: the one of its first start, or what `make` returns."""
        path = self.folder / IDS
        ids = dict(read_json(path)) if path.exists() else {}
        if sink not in ids:
            ids[sink] = make()
            write_atomically(path, (json.dumps(ids) + "\n").encode())
        return str(ids[sink])


def _tensorboard(start: TrackedRun) -> Sink:
    """Files in the run folder's tensorboard/."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(start.folder / "tensorboard"), purge_step=start.step + 1)

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Sink(log, writer.close)


def _wandb(start: TrackedRun) -> Sink:
    import wandb  # pyright: ignore[reportMissingImports] - an extra

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=start.name,
        id=start.known_as("wandb", lambda: os.urandom(4).hex()),
        dir=str(start.folder),
        config=dict(start.config),
        resume="allow",
    )
    return Sink(lambda values, step: run.log(dict(values), step=step), run.finish)


def _trackio(start: TrackedRun) -> Sink:
    import trackio  # pyright: ignore[reportMissingImports] - an extra

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    name = start.known_as("trackio", lambda: f"{start.name}-{os.urandom(2).hex()}")
    trackio.init(project=project, name=name, config=dict(start.config), resume="allow")
    return Sink(lambda values, step: trackio.log(dict(values), step=step), trackio.finish)


def _mlflow(start: TrackedRun) -> Sink:
    import mlflow  # pyright: ignore[reportMissingImports] - an extra

    client = mlflow.MlflowClient()
    found: list[str] = []

    def make() -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        found.append(client.create_run(number, run_name=start.name).info.run_id)
        return found[0]

    run = start.known_as("mlflow", make)
    if found:
        for name, value in start.config.items():
            client.log_param(run, name, str(value)[:500])

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            client.log_metric(run, name, value, step=step)

    return Sink(log, lambda: client.set_terminated(run))


SINKS: dict[SinkName, tuple[str, Callable[[TrackedRun], Sink]]] = {
    "tensorboard": ("tensorboard", _tensorboard),
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
    "mlflow": ("mlflow", _mlflow),
}
"""By name the package that has to be there, which is also the name of our extra, and how it is begun."""


class Tracker:
    """The sink of a run, opened when the first numbers come; does nothing without one."""

    def __init__(self, name: SinkName | None, folder: Path, config: Mapping[str, Any]) -> None:
        """`config` as flat values, names dotted.

        Raises:
            UserError: if the sink's package is not installed.
        """
        if name is not None and importlib.util.find_spec(SINKS[name][0]) is None:
            raise UserError(f"`log={name!r}` needs {name}; install beitkit[{name}], or leave `log` out")
        self._name: SinkName | None = name
        self._sink: Sink | None = None
        self._start = TrackedRun(folder, config, 0)

    def begin_after(self, step: int) -> None:
        """Numbers that come are of later steps than this."""
        self._start = self._start._replace(step=step)

    def send(self, values: Mapping[str, object], step: int) -> str | None:
        """Send the numbers among these values; returns a warning where that failed for the first time."""
        if self._name is None:
            return None
        numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
        return self._guarded(lambda: self._opened().log(numbers, step))

    def close(self) -> str | None:
        """The run is finished."""
        sink, self._sink = self._sink, None
        return None if sink is None else self._guarded(sink.close)

    def _opened(self) -> Sink:
        assert self._name is not None
        if self._sink is None:
            self._sink = SINKS[self._name][1](self._start)
        return self._sink

    def _guarded(self, send: Callable[[], object]) -> str | None:
        try:
            send()
        except Exception as error:  # of whatever kind: other people's networks and programs must not end a run
            what = " ".join(str(error).split())[:200] or type(error).__name__
            warning = f"warning: {self._name} failed and is switched off, the run goes on ({what})"
            self._name = self._sink = None
            return warning
        return None
