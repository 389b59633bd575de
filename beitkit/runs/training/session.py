"""Session of a training run: start or resume it in its folder, read its images, and finish it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from beitkit.command.options import with_options
from beitkit.configs.choices import curve_every
from beitkit.configs.codec import flat, to_json
from beitkit.configs.data import ReadConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, Sharding, SinkName, TrainConfig, resolved
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import Reading
from beitkit.errors import CONTINUES, NotSaved, UserError
from beitkit.evaluation.longer import Outlook, outlook
from beitkit.files import read_json, why
from beitkit.interop.formats.native import save_native
from beitkit.interop.kinds import Network
from beitkit.interop.load import load
from beitkit.report.journal import read_journal, series
from beitkit.report.sections import TrainingReport
from beitkit.runs.training.contents import check_contents
from beitkit.runs.training.reader import training_batches
from beitkit.runs.training.unfinished import describe_network
from beitkit.system import is_full
from beitkit.tokenizers.frozen import TokenizerNetwork
from beitkit.train.bad_steps import BadSteps
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal
from beitkit.train.loop import Best, Training
from beitkit.train.machine.runtime import Runtime, start_runtime
from beitkit.train.schedule import make_schedule
from beitkit.train.sinks import Tracker


@runtime_checkable
class TrainingRun(Protocol):
    """What the configurations of all training verbs have."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path:
        """Run folder."""
        ...

    @property
    def train(self) -> TrainConfig:
        """Length, batch and learning rate."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """Optimizer."""
        ...

    @property
    def loop(self) -> LoopConfig:
        """What happens besides stepping."""
        ...

    @property
    def machine(self) -> MachineConfig:
        """Where it runs."""
        ...

    @property
    def log(self) -> SinkName | None:
        """Where its numbers go besides the journal."""
        ...

    @property
    def read(self) -> ReadConfig:
        """What is done about images that cannot be read."""
        ...


Run = TypeVar("Run", bound=TrainingRun)
Result = TypeVar("Result")
Net = TypeVar("Net", bound=Network)


def start_run(config: Run, sharding: Sharding = "none") -> tuple[Run, Runtime]:
    """Start the runtime; the configuration then says how many forward passes of a step its processes share."""
    runtime = start_runtime(config.machine, sharding)
    return replace(config, loop=config.loop.shared_by(runtime.world_size)), runtime


@dataclass(frozen=True)
class Session:
    """A run that trains: its folder, what `fit` goes by, and how images are read."""

    folder: RunFolder
    training: Training
    reading: Reading

    @classmethod
    def begin(
        cls,
        verb: str,
        config: TrainingRun,
        runtime: Runtime,
        inputs: Mapping[str, str],
        *,
        files: ImageList,
        others: Sequence[ImageList] = (),
        default_epochs: int,
    ) -> Session | None:
        """Make the run's folder or open it to continue; None if the run is finished, which is then said.

        Args:
            verb: whose run it is.
            config: complete; what the folder records.
            runtime: of `start_run`.
            inputs: digests of what the run reads, by name.
            files: the training images.
            others: masks, and images that the run is judged by.
            default_epochs: length of a run that asks for none.

        Raises:
            UserError: if the folder holds something else, or an input is not what the run began with (see `RunFolder`), or the
                configuration does not fit the images (see `make_schedule`).
        """
        opened = open_folder(verb, config, runtime, inputs)
        if opened is None:
            return None
        folder, journal = opened
        if runtime.is_main:
            check_contents(folder, (files, *others), config.loop.check_contents, journal.say)
        training = Training(
            schedule=make_schedule(config.train, config.loop, config.optim, len(files), default_epochs=default_epochs),
            loop=config.loop,
            optim=config.optim,
            runtime=runtime,
            journal=journal,
            checkpoints=folder.checkpoints,
            bad_steps=BadSteps(folder.path, files.path, runtime.processes),
        )
        return cls(folder, training, reading_of(config, folder, runtime))

    def say(self, text: str) -> None:
        """Print a line."""
        self.training.journal.say(text)

    def say_choices(self, lines: Iterable[str], said: set[str] | None = None) -> None:
        """Print what was chosen, a line each; not again what a run before it that shares `said` has printed."""
        known = set() if said is None else said
        for line in dict.fromkeys(lines):
            if line not in known:
                self.say(line)
            known.add(line)

    def say_held(self, dataset: ImageDataset) -> None:
        """Say how small images are held in memory."""
        if (line := dataset.describe()) is not None:
            self.say(line)

    def batches(self, dataset: ImageDataset, first: int) -> Iterator[Batch]:
        """This process's endless batches from number `first` on, uint8 and on the device (see `training_batches`)."""
        return training_batches(dataset, first, self.reading, self.training.runtime, self.training.waited)

    def best(self, metric: str, model: Network | TokenizerNetwork, *, is_loss: bool = False, patience: int | None = None) -> Best:
        """Keeps the best `model` by this evaluation in the folder; `patience` as in `train.loop.Best`."""
        return Best(metric, lambda: save_native(model, self.folder.best), is_loss=is_loss, patience=patience)

    def best_kept(self, last: Net) -> Net:
        """The network of the best evaluation, on the CPU; `last` if no evaluation gave a number."""
        if not self.folder.best.exists():
            return last
        network = load(self.folder.best)
        assert isinstance(network, type(last))
        return network

    def curved(self, judged: int) -> Training:
        """The training, with some evaluations of so many images on the way where nobody said how often (`curve_every`).

        What is stored as the run's configuration stays as it was given: evaluations change nothing of what is learned.
        """
        loop, schedule = self.training.loop, self.training.schedule
        every = loop.evaluate_every or curve_every(schedule.steps, schedule.steps * schedule.images_per_step, judged)
        return replace(self.training, loop=replace(loop, evaluate_every=every))

    def outlook(self, metric: str, images: int) -> Outlook:
        """What twice the steps would bring, by the run's own journal, which is said if there is an answer."""
        found = outlook(read_journal(self.folder.journal), metric, images)
        if found.gain is not None:
            self.say(found.sentence)
        return found

    def length_facts(self, metric: str, patience: int | None) -> list[tuple[str, str]]:
        """For the header of a report: how long a run with `patience` was, and whose weights became the finished model."""
        if patience is None:
            return []
        found = series(read_journal(self.folder.journal), metric, "evaluate")
        scored = [(value, -step) for step, value in zip(*found, strict=True) if not math.isnan(value)]
        best = -max(scored)[1] if scored else found.steps[-1]
        return [
            ("Length", f"{found.steps[-1]:,.0f} of {self.training.schedule.steps:,} steps (patience {patience})"),
            (
                "Finished model",
                f"the best of {len(found.steps)} evaluations, after step {best:,.0f}; its score was chosen, so it is "
                "a little too good",
            ),
        ]

    def describe(self, model: Network | TokenizerNetwork) -> None:
        """Write down what is trained, so that it can be looked at before the run is finished."""
        if self.training.runtime.is_main:
            describe_network(self.folder, model)

    def say_found(self, report: TrainingReport, config: TrainingRun) -> None:
        """What a finished run's report warns about, and its table beside another run; called where the run is reported."""
        if report.comparison is not None:
            report.comparison.print()
        for sentence in report.warnings:
            self.say(with_options(f"warning: {_after_colon(sentence)}", type(config)))

    def finish(self, model: Network | TokenizerNetwork, next_command: str) -> None:
        """Write the finished model, wait until it is there, and say what can be done with it; called by all processes."""
        save_result(self.folder, self.training.runtime, self.training.journal, model, next_command)


def _after_colon(sentence: str) -> str:
    """A sentence with a small first letter, unless its first word is a name."""
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence


def open_folder(verb: str, config: TrainingRun, runtime: Runtime, inputs: Mapping[str, str]) -> tuple[RunFolder, Journal] | None:
    """A run's folder, made or opened to continue, and its journal; None if the run is finished, which is then said.

    Raises:
        UserError: if the folder holds something else, or an input is not what the run began with (see `RunFolder`).
    """
    folder = RunFolder(config.out, verb, config, runtime.processes)
    tracker = Tracker(config.log, folder.path, flat(to_json(config)))
    journal = Journal(folder.journal, is_main=runtime.is_main, tracker=tracker)
    if folder.is_finished():
        journal.say(f"{folder.path} holds this run, finished; its report.html stays as it is")
        return None
    folder.pin(**inputs)
    return folder, journal


def reading_of(config: TrainingRun, folder: RunFolder, runtime: Runtime) -> Reading:
    """How a run reads its images."""
    return Reading(
        batch_size=resolved(config.train.batch_size),
        workers=config.machine.workers,
        device=runtime.device,
        max_broken=config.read.max_broken,
        report=folder.note_broken,
        list_file=folder.broken_list,
    )


def save_result(
    folder: RunFolder, runtime: Runtime, journal: Journal, model: Network | TokenizerNetwork, next_command: str
) -> None:
    """Write the finished model, wait until it is there, and say what can be done with it; called by all processes."""
    if runtime.is_main:
        _write_result(folder, model.cpu())
    runtime.processes.barrier()
    journal.close()
    journal.say(f"done: {folder.path} (report.html shows it). Next: {next_command}")
    if folder.checkpoints.failure is not None:
        raise NotSaved(f"{folder.path} is done, but not all of it could be saved ({folder.checkpoints.failure})")


def _write_result(folder: RunFolder, model: Network | TokenizerNetwork) -> None:
    """Write the finished model; where the disk is full a second time, with the room of older checkpoints.

    Raises:
        NotSaved: if there is no room either; the newest checkpoint is left, from which the same command writes the model.
    """
    for attempt in range(2):
        try:
            save_native(model, folder.path)
            folder.mark_done()
            return
        except OSError as error:
            if not is_full(error):
                raise
            if not attempt:
                folder.checkpoints.make_room()
                continue
            stored = folder.checkpoints.newest()
            kept = "" if stored is None else f"the state after step {stored.step:,} is saved; "
            raise NotSaved(
                f"training is done, but the finished model could not be written ({error.filename}: {why(error)}); {kept}make "
                f"room, and {CONTINUES}"
            ) from None


def read_result(folder: Path, kind: str, val_digest: str, read: Callable[[dict[str, Any]], Result]) -> Result:
    """What `read` takes from the result.json of a run of this kind, measured on the same validation images.

    Raises:
        UserError: if there is no finished run, or it was measured on other images.
    """
    path = folder / "result.json"
    try:
        content = read_json(path)
        result, measured_on = read(content), content["val_digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} holds no finished {kind} run (expected {path})") from None
    if measured_on != val_digest:
        raise UserError(f"{folder} was measured on other validation images, so the two runs cannot be compared")
    return result
