"""The training loop, `fit`, shared by tokenizer training, pre-training, fine-tuning, segmentation and probes.

The objective is a module, `objective(batch, progress) -> Loss`; targets are part of the batch; evaluators yield metrics. Batches
and random numbers of step k depend only on (seed, k), so a resumed run continues as if it had not stopped: nothing is
replayed and no generator state is stored.

Forward passes are numbered through the run. Of W ranks, rank r computes passes r, r + W, r + 2 W and so on, each with the images
and random numbers of its pass, so up to rounding the result does not depend on W.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from beitkit.configs.train import LoopConfig, OptimConfig, resolved
from beitkit.contracts import WHOLE, Batch, Evaluator, Share
from beitkit.errors import CONTINUES, Interrupted, NumericalError, UserError, few
from beitkit.files import why
from beitkit.terminal import tell, told_to
from beitkit.train.bad_steps import BadSteps, Remembered
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Manifest
from beitkit.train.journal import Journal, WaitMeter, duration
from beitkit.train.machine.processes import Processes
from beitkit.train.machine.runtime import NoImages, Runtime, StopRequest
from beitkit.train.optim import Group
from beitkit.train.schedule import Schedule, is_due
from beitkit.train.step import StepNumbers, StepResult, Trainer

WINDOW = "window."
"""Before the names of the sums since the last log line, among the numbers of a checkpoint."""
COPIED_ON_CPU = 2**28
"""Bytes of a state on the CPU that are copied to be written while training goes on; a GPU's state is copied to the host in any
case."""
READ_LATE = {"cuda": 1}
"""By device, how many steps later the host reads the result of a step, so that the device always has work."""


class Replayed(Exception):  # noqa: N818 - not an error
    """The last step of a replay is done."""


@dataclass
class Replay:
    """Steps that are computed again only to be looked at: nothing is evaluated or saved."""

    until: int
    """The last of them."""
    results: list[StepNumbers] = field(default_factory=list)
    """What each of them gave."""


_replay: Replay | None = None


@contextmanager
def replayed(replay: Replay) -> Iterator[None]:
    """Inside, `fit` fills `replay` and raises `Replayed` after its last step."""
    global _replay
    before, _replay = _replay, replay
    try:
        yield
    finally:
        _replay = before


class Best:
    """Keeps the best weights by one metric: writes them whenever an evaluation beats all earlier ones."""

    def __init__(self, metric: str, write: Callable[[], object], *, is_loss: bool = False, patience: int | None = None) -> None:
        """`metric`: name of a metric, larger is better unless it is a loss; `write` stores the current weights.

        `patience`: after this many evaluations in a row that are not better training ends; None: it goes on.
        """
        self.metric = metric
        self.write = write
        self.is_loss = is_loss
        self.patience = patience
        self.value = -math.inf
        """Of the best evaluation; a loss is negated."""
        self.failure: str | None = None
        """Why the best weights could not be written, if they could not."""
        self.waited = 0
        """Evaluations since the best one."""

    def offer(self, values: dict[str, float]) -> None:
        """Write if this evaluation is the best; one whose metric is NaN never is."""
        value = -values[self.metric] if self.is_loss else values[self.metric]
        self.waited += 1
        if value > self.value:
            before, self.value, self.waited, self.failure = self.value, value, 0, None
            try:
                self.write()
            except OSError as error:  # no reason to lose the run
                self.value, self.failure = before, f"{error.filename}: {why(error)}"
                tell(f"the best weights so far could not be written ({self.failure})")

    @property
    def is_exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training run besides the objective: schedule, loop, optimizer, runtime, outputs."""

    schedule: Schedule
    """Length and learning rates in steps."""
    loop: LoopConfig
    """How often to log, evaluate and save, and how many steps may be non-finite."""
    optim: OptimConfig
    """The optimizer's constants."""
    runtime: Runtime
    """Device, precision and ranks; all ranks call `fit`, rank 0 writes and evaluates."""
    journal: Journal
    """The event log."""
    checkpoints: Checkpoints
    """Where the state is saved, and resumed from."""
    renew: Callable[[int], object] | None = None
    """Called by rank 0 with the number of each step that is evaluated or saved: the objective is then in eval mode, with the
    weights that the run would end with here."""
    bad_steps: BadSteps | None = None
    """Where steps that are not finite are listed, if they are."""
    waited: WaitMeter = field(default_factory=WaitMeter)
    """Meter inside the stream, for the share of time spent waiting for data."""


def fit(
    objective: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    groups: list[Group],
    training: Training,
    evaluators: Sequence[Evaluator] = (),
    best: Best | None = None,
    also_at: Collection[int] = (),
) -> None:
    """Train `objective` in place; afterward it holds the final weights (the averaged ones with `loop.ema`).

    With sharded weights, the objective of rank 0 holds them during evaluations and at the end; at all other times, and on all
    other ranks, it is empty.

    Args:
        objective: module whose forward takes (batch, progress in [0, 1]) and returns a `Loss`; it is moved to the device.
        batches: first batch index -> endless stream, so that resuming needs no replay. Every rank counts its own batches
            (`data.stream.training_stream` with its rank and world).
        groups: of the optimizer (`train.optim`).
        training: all other settings.
        evaluators: run every `loop.evaluate_every` steps and at the end.
        best: keeps the weights of the best evaluation, and ends the run where its patience runs out.
        also_at: steps after which is evaluated as well; 0 is before the first.

    Raises:
        UserError: if images cannot be read; in a single process the steps before are saved.
        ProcessLost: if another rank died.
        NumericalError: after `loop.max_bad_steps` steps in a row whose loss or gradient is not finite, if there is no checkpoint
            to go back to, or `loop.max_setbacks` times it was tried.
        Interrupted: after a signal, with everything saved.
    """
    schedule, loop, runtime, journal = training.schedule, training.loop, training.runtime, training.journal
    processes = runtime.processes
    if _replay is not None and _replay.until > schedule.steps:
        raise UserError(f"the run has {schedule.steps} steps; `step` must be one of them, got {_replay.until}")
    late = READ_LATE.get(runtime.kind, 0) if loop.max_bad_steps > 1 else 0
    with processes.watched():
        trainer = Trainer(
            objective,
            groups,
            schedule=schedule,
            optim=training.optim,
            runtime=runtime,
            accumulation_steps=resolved(loop.shared_by(runtime.world_size).accumulate),
            ema=loop.ema,
        )
    window = _Window(training.waited, processes)
    state = _State(trainer, best, window)
    is_continued = state.restore(training.checkpoints.newest(), training.checkpoints)
    journal.rewind(state.done)
    if training.checkpoints.damaged:
        damaged = few(training.checkpoints.damaged, 4)
        journal.note(state.done, f"the checkpoint after step {damaged} is damaged; going back to the one after step {state.done}")
    for step in training.checkpoints.unfinished:
        journal.say(f"the state after step {step} was not saved to its end; going on from step {state.done}")
    if is_continued:
        journal.say(f"continuing after step {state.done} of {schedule.steps}")

    stream = Remembered(batches(state.first_batch))
    begun: deque[tuple[StepResult, list[Tensor]]] = deque()
    is_over = best is not None and best.is_exhausted  # a run that was cut after its last step
    trainer.parallel.module.train()
    share = Share(processes.rank, processes.world_size, processes.gather) if trainer.parallel.is_whole_everywhere else None
    with (
        StopRequest().listening() as stop,
        training.checkpoints.settled(),
        journal.open_line(),
        processes.watched(),
        told_to(lambda sentence: journal.note(state.done, sentence)),
    ):
        if evaluators and 0 in also_at and not is_continued and _replay is None:
            with window.paused(), trainer.full_weights():
                _evaluate(objective, evaluators, best, journal, 0, share)
            with window.paused():
                state.save(training.checkpoints)
        while state.done < schedule.steps and not is_over:
            try:
                losses = trainer.forward_backward(stream, state.done)
            except (UserError, NoImages) as error:
                what_now = _saved_without(state, begun, training)
                if isinstance(error, NoImages):
                    raise Interrupted(state.done, schedule.steps, stop.signal_number or 0, what_now) from None
                raise
            norm = trainer.clip()
            result = trainer.update(losses, norm, state.done, stop)
            state.done += 1
            window.add(result)
            begun.append((result, stream.taken()))

            is_logged = is_due(state.done, loop.log_every, schedule.steps)
            if _replay is not None:
                _replay.results.append(numbers := result.read())
                state.refused += numbers.is_refused
                if is_logged:
                    _log(window, state, schedule, numbers, journal)
                if state.done == _replay.until:
                    raise Replayed
                begun.clear()
                continue
            is_evaluated = evaluators and (state.done in also_at or is_due(state.done, loop.evaluate_every, schedule.steps))
            is_saved = is_evaluated or is_due(state.done, loop.save_every, schedule.steps)
            numbers, signal_number = None, None
            while len(begun) > (0 if is_logged or is_saved or signal_number or state.bad_steps else late):
                numbers = state.judge(*begun.popleft(), training)
                signal_number = signal_number or numbers.signal_number
            if state.bad_steps >= loop.max_bad_steps:
                with window.paused():
                    state.go_back(training)
                    stream = Remembered(batches(state.first_batch))
                continue
            if is_logged and numbers is not None:
                _log(window, state, schedule, numbers, journal)
            elif journal.is_awaited or window.is_first(state.done):
                line = _how_far(state.done, schedule, window.speed(state.done), window.said)
                journal.progress(line, state.done / schedule.steps)
            try:
                if is_evaluated or (is_saved and training.renew is not None):
                    with window.paused(), trainer.full_weights():
                        if is_evaluated:
                            _evaluate(objective, evaluators, best, journal, state.done, share)
                        if processes.is_main and training.renew is not None and state.done < schedule.steps:
                            _renew(objective, training.renew, state.done)
                    if is_evaluated and best is not None and best.patience is not None and state.done < schedule.steps:
                        is_over = processes.all_gather(best.is_exhausted)[0]
                    if is_over and best is not None:
                        journal.note(
                            state.done,
                            f"stopped after step {state.done} of {schedule.steps}: {best.patience} evaluations in a row were not "
                            f"better in {best.metric}",
                        )
            finally:  # a failing evaluation must not lose the steps since the last save
                if is_saved or signal_number is not None:
                    with window.paused():
                        is_last = is_over or signal_number is not None or state.done == schedule.steps
                        state.save(training.checkpoints, in_background=not is_last)
            if signal_number is not None and state.done < schedule.steps and not is_over:
                raise Interrupted(state.done, schedule.steps, signal_number, *_unless_saved(training.checkpoints))
            _say_unsaved(training)
        not_finite = trainer.not_finite()
        trainer.finish()
        _say_unsaved(training)
        training.checkpoints.failure = training.checkpoints.failure or (best.failure if best is not None else None)
    if state.bad_steps or not_finite:
        where = f" in {few(not_finite, 4)}" if not_finite else ""
        raise NumericalError(
            f"the run ended with numbers that are not finite{where} after step {state.done}; start again in another `out` with "
            "a lower `lr`"
        )
    objective.eval()


def _saved_without(state: _State, begun: deque[tuple[StepResult, list[Tensor]]], training: Training) -> str:
    """Save the state before a step whose images did not come; returns what is saved, in words."""
    if training.runtime.world_size > 1:
        # The others are in the middle of the step, and saving needs all of them.
        return f"the images did not come; the last saved step is kept, {CONTINUES}"
    state.trainer.abandon()
    while begun:
        state.judge(*begun.popleft(), training)
    if state.done > state.saved:
        state.save(training.checkpoints)
    training.checkpoints.settle()
    return "the images did not come; " + (_unless_saved(training.checkpoints) or [f"everything is saved, {CONTINUES}"])[0]


def _say_unsaved(training: Training) -> None:
    """Say which states could not be saved; training goes on."""
    while training.checkpoints.failures:
        step, reason = training.checkpoints.failures.pop(0)
        training.journal.note(step, f"the state after step {step} could not be saved ({reason}); the one before is kept")


def _unless_saved(checkpoints: Checkpoints) -> list[str]:
    """What to say of a run that stops and is not saved."""
    if checkpoints.failure is None:
        return []
    return [f"its state could not be saved ({checkpoints.failure}), but the one before is there; {CONTINUES}"]


class _State:
    """The training state, as stored in a checkpoint."""

    def __init__(self, trainer: Trainer, best: Best | None, window: _Window) -> None:
        self.trainer = trainer
        self.best = best
        self.window = window
        self.done = 0
        self.saved = 0
        """The step of the last checkpoint."""
        self.bad_steps = 0
        """How many steps in a row were not finite."""
        self.moved = 0
        """How many steps the images are ahead of the weights, because the run went back."""
        self.setbacks = 0
        """How often it did."""
        self.refused = 0
        """How many steps were left out because the scale of float16's gradients was too large."""
        self._gone_back_to: int | None = None
        window.begin(0)

    @property
    def first_batch(self) -> int:
        """Number of this rank's next batch."""
        return (self.done + self.moved) * self.trainer.own_accumulation_steps

    def restore(self, stored: Manifest | None, checkpoints: Checkpoints) -> bool:
        """Load a stored state; returns whether there was one."""
        if stored is None:
            return False
        checkpoints.restore(stored, self.trainer.state())
        numbers = stored.numbers
        if self.best is not None:
            self.best.value = max(self.best.value, numbers.get("best", -math.inf))
            self.best.waited = int(numbers.get("waited", 0))
        self.done = self.saved = stored.step
        self.bad_steps, self.moved, self.setbacks = (int(numbers.get(name, 0)) for name in ("bad_steps", "moved", "setbacks"))
        self.refused = int(numbers.get("refused", 0))
        if self.trainer.scale is not None:
            self.trainer.scale.restore(numbers)
        self.window.begin(self.done, numbers)
        return True

    def save(self, checkpoints: Checkpoints, *, in_background: bool = False) -> None:
        """Save it; in the background if a copy for that does not take much of the memory that training needs."""
        numbers = {"bad_steps": float(self.bad_steps), **self.window.numbers()}
        counts = {"moved": self.moved, "setbacks": self.setbacks, "refused": self.refused}
        numbers |= {name: float(value) for name, value in counts.items() if value}
        if self.trainer.scale is not None:
            numbers |= self.trainer.scale.state()
        if self.best is not None and self.best.value > -math.inf:
            numbers["best"] = self.best.value
        if self.best is not None and self.best.waited:
            numbers["waited"] = float(self.best.waited)
        pieces = self.trainer.state()
        on_cpu = [piece for piece in pieces.values() if piece.rows.device.type == "cpu"]
        size = sum(math.prod(piece.shape) * piece.rows.element_size() for piece in on_cpu)  # the same on all ranks
        checkpoints.save(self.done, pieces, numbers, in_background=in_background and size <= COPIED_ON_CPU)
        self.saved = self.done

    def judge(self, result: StepResult, shown: list[Tensor], training: Training) -> StepNumbers:
        """Read the result of a step; one that is not finite is said, and listed with its images; a refused one is counted."""
        numbers = result.read()
        self.refused += numbers.is_refused
        if numbers.is_applied or numbers.is_refused:  # its loss was finite, so the weights are as good as before
            self.bad_steps = 0
            return numbers
        self.bad_steps += 1
        sentence = f"step {numbers.number} was not applied: loss {numbers.loss:g}, gradient norm {numbers.grad_norm:g}"
        training.journal.note(numbers.number, sentence)
        if training.bad_steps is not None:
            first_batch = (numbers.number - 1 + self.moved) * self.trainer.accumulation_steps
            training.bad_steps.note(numbers.number, first_batch, numbers.loss, numbers.grad_norm, shown)
        return numbers

    def go_back(self, training: Training) -> None:
        """Back to the last checkpoint before the bad steps, and on with the images after theirs.

        Raises:
            NumericalError: if there is none, or this was done `loop.max_setbacks` times.
        """
        last, first = self.done, self.done - self.bad_steps
        count, self.bad_steps, self.done = self.bad_steps, 0, first
        if training.bad_steps is not None:  # no bad step was applied, so the state before the first of them is this one
            self.save(training.bad_steps.checkpoints)
        checkpoints, most = training.checkpoints, training.loop.max_setbacks
        stored = checkpoints.newest(first) or checkpoints.newest()  # those saved amid the bad steps hold the state before them
        if stored is None or self.setbacks >= most:
            again = f" after going back {self.setbacks} times" if self.setbacks else ""
            listed = "" if training.bad_steps is None else f"; {training.bad_steps.folder} holds the names of their images"
            raise NumericalError(
                f"{count} steps in a row were not finite{again}, the last was step {last}{listed}; start again in another `out` "
                "with a lower `lr`, a smaller `optim.clip`, or `precision='float32'`"
            )
        if stored.step == self._gone_back_to and (older := checkpoints.newest(stored.step - 1)) is not None:
            stored = older  # from there it went wrong before
        reached, setbacks = last + self.moved, self.setbacks + 1
        self.restore(stored, checkpoints)
        self.bad_steps, self.moved, self.setbacks = 0, reached - self.done, setbacks
        self._gone_back_to = self.done
        training.journal.rewind(self.done)
        training.journal.note(
            self.done,
            f"{count} steps in a row were not finite, the last was step {last}: going back to the checkpoint after step "
            f"{self.done}, and on with the images after theirs; those of {last - self.done} steps are left out ({setbacks} of at "
            f"most {most} times)",
        )
        self.save(checkpoints)


def _log(window: _Window, state: _State, schedule: Schedule, numbers: StepNumbers, journal: Journal) -> None:
    """Log the metrics since the last log line, speed and remaining time, after a step with these numbers."""
    done = state.done
    scaling = {} if math.isnan(numbers.scale) else {"loss_scale": numbers.scale, "refused": float(state.refused)}
    metrics, steps_per_second, waited = window.close(done)
    speed = steps_per_second * schedule.images_per_step
    journal.record(
        "train",
        done,
        **metrics,
        data_wait=waited,
        lr=schedule.lr_at(done - 1),
        grad_norm=numbers.grad_norm,
        **scaling,
        epoch=done / schedule.steps_per_epoch,
        images_per_second=speed,
    )
    window.said = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) + "  "
    line = _how_far(done, schedule, steps_per_second, window.said, f", {waited:.0%} waiting for data")
    journal.progress(line, done / schedule.steps)


def _how_far(done: int, schedule: Schedule, steps_per_second: float, said: str, waiting: str = "") -> str:
    speed, left = steps_per_second * schedule.images_per_step, duration((schedule.steps - done) / steps_per_second)
    return f"step {done}/{schedule.steps}  {said}{speed:.3g} images/s{waiting}, {left} left"


class _Window:
    """Metrics since the last log line; values stay on the device until the line is due."""

    def __init__(self, waited: WaitMeter, processes: Processes) -> None:
        self.waited = waited
        self.processes = processes
        self.first = 0
        self.said = ""
        """The metrics of the last log line, in words."""

    def begin(self, step: int, numbers: Mapping[str, float] | None = None) -> None:
        """Begin after a step, with the sums that `numbers` of a checkpoint hold."""
        self.first = step
        self._restart(step)
        found = [(re.fullmatch(WINDOW + r"(\d+)\.(.+)", name), value) for name, value in (numbers or {}).items()]
        sums = [(int(match[1]), match[2], value) for match, value in found if match is not None]
        is_as_before = {rank for rank, *_ in sums} == set(range(self.processes.world_size))
        for rank, name, value in sums:
            if rank == self.processes.rank if is_as_before else self.processes.is_main:
                self.sums[name] = self.sums.get(name, torch.tensor(0.0)) + value

    def numbers(self) -> dict[str, float]:
        """The sums of every rank, for a checkpoint: added up in another order they would be rounded otherwise; collective."""
        own = {name: float(value) for name, value in self.sums.items()}
        ranks = enumerate(self.processes.all_gather(own))
        sums = {f"{WINDOW}{rank}.{name}": value for rank, values in ranks for name, value in values.items()}
        return sums if all(map(math.isfinite, sums.values())) else {}

    def add(self, result: StepResult) -> None:
        """Add the losses of a step, if it was applied."""
        for loss in result.losses:
            for name, value in {"passes": torch.ones_like(loss.total), "loss": loss.total, **loss.parts}.items():
                applied = torch.where(result.is_finite, value.detach(), 0)
                self.sums[name] = self.sums[name] + applied if name in self.sums else applied

    def close(self, step: int) -> tuple[dict[str, float], float, float]:
        """Means over all passes since the last call, steps per second, and the share of time this process waited for data."""
        passes, *others = self._totals()
        means = dict(zip(list(self.sums)[1:], (value / passes for value in others), strict=True)) if passes else {}
        seconds = time.perf_counter() - self.start
        closed = means, self.speed(step), (self.waited.seconds - self.waited_before) / seconds
        self._restart(step)
        return closed

    def speed(self, step: int) -> float:
        """Steps per second since the last log line."""
        return (step - self.step) / (time.perf_counter() - self.start)

    def is_first(self, step: int) -> bool:
        """Whether this is the first step since this process began."""
        return step == self.first + 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside from the speed."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def _totals(self) -> list[float]:
        device = self.sums["loss"].device
        return self.processes.all_reduce(torch.stack([value.float().to(device) for value in self.sums.values()])).tolist()

    def _restart(self, step: int) -> None:
        self.step, self.start, self.waited_before = step, time.perf_counter(), self.waited.seconds
        self.sums: dict[str, Tensor] = {}


def _evaluate(
    objective: nn.Module, evaluators: Sequence[Evaluator], best: Best | None, journal: Journal, step: int, share: Share | None
) -> None:
    """Evaluate, each process its share; by rank 0 alone where the others have no weights (`share` None)."""
    if share is None and not journal.is_main:
        return
    objective.eval()
    values: dict[str, float] = {}
    with torch.no_grad():
        for evaluator in evaluators:
            values.update({f"{evaluator.name}/{name}": value for name, value in evaluator.run(share or WHOLE)})
    if not journal.is_main:
        objective.train()
        return
    if best is not None:
        best.offer(values)
    journal.record("evaluate", step, **values)
    journal.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    objective.train()


@torch.no_grad()
def _renew(objective: nn.Module, renew: Callable[[int], object], step: int) -> None:
    objective.eval()
    renew(step)
    objective.train()
