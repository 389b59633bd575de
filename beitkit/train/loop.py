"""The one training loop: tokenizer, pre-training and fine-tuning all pass through `fit`.

The job is a module with one forward, `objective(batch, progress) -> Loss`; targets arrive in the batch; evaluators yield
numbers. Step k's batches and random numbers depend only on (seed, k), so a run that was cut continues as if it had not
been: nothing is replayed and no generator state is stored.

Forward passes are numbered through the run. Of W processes, process r makes passes r, r + W, r + 2 W and so on, each with the
pictures and the random numbers of its pass, so W decides who does the work and not what comes out, but for rounding.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.contracts import Batch, Evaluator, Loss
from beitkit.errors import Interrupted, NumericalError, UserError
from beitkit.train.checkpoint import Checkpoints
from beitkit.train.journal import Journal, WaitMeter, duration
from beitkit.train.optim import Group, make_optimizer
from beitkit.train.processes import Processes
from beitkit.train.runtime import SIGNALS, Runtime, StopRequest
from beitkit.train.schedule import Plan, is_due

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Sets the random numbers of runs with neighboring seeds far apart."""


class WeightAverage:
    """Exponential moving average of a module's parameters (its buffers are not averaged)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.averages = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move each average towards its parameter by 1 - decay."""
        for name, parameter in self.module.named_parameters():
            self.averages[name].lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the module's parameters; a second call puts them back."""
        for name, parameter in self.module.named_parameters():
            kept = parameter.clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)


class Best:
    """The best weights so far by one metric, written whenever an evaluation beats all before it."""

    def __init__(self, metric: str, write: Callable[[], object]) -> None:
        """`metric` is an evaluation's name, larger is better; `write` stores the weights as they are when it is called."""
        self.metric = metric
        self.write = write
        self.value = -math.inf

    def offer(self, values: dict[str, float]) -> None:
        """Write if this evaluation is the best."""
        if values[self.metric] > self.value:
            self.value = values[self.metric]
            self.write()


def fit(
    objective: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    groups: list[Group],
    *,
    plan: Plan,
    loop: LoopConfig,
    optim: OptimConfig,
    runtime: Runtime,
    journal: Journal,
    checkpoints: Checkpoints,
    waited: WaitMeter,
    evaluators: Sequence[Evaluator] = (),
    best: Best | None = None,
) -> None:
    """Train `objective` in place; afterwards it holds the finished weights (the averaged ones with `loop.ema`).

    Args:
        objective: module whose forward takes (batch, progress in [0, 1]) and returns a `Loss`.
        batches: first batch index -> endless stream, so that a continued run needs no replay. Several processes count each
            its own batches (`data.stream.training_stream` with their rank and world).
        groups: parameters with their learning-rate factors and weight decay.
        plan: length and learning rates in steps.
        loop: how often to log, evaluate and save, and what to do about steps that are not finite.
        optim: the optimizer's constants.
        runtime: device, precision and processes; several call this together, and the main one writes and evaluates.
        journal: where events go.
        checkpoints: where the state goes; a state found there is continued.
        waited: meter inside the stream, for the share of time spent waiting for data.
        evaluators: run every `loop.evaluate_every` steps and at the end.
        best: keeps the weights of the best evaluation.

    Raises:
        ProcessLost: if another process ended.
        NumericalError: after `loop.max_bad_steps` steps in a row whose loss or gradient is not finite.
        Interrupted: after a signal, with everything saved.
    """
    processes, passes = runtime.processes, loop.shared_by(runtime.world).accumulate
    assert passes is not None
    own_passes = passes // processes.world
    average = WeightAverage(objective, loop.ema) if loop.ema else None
    parameters = [parameter for group in groups for parameter in group["params"]]
    state = _State(objective, make_optimizer(groups, optim), average, best)
    if state.restore(checkpoints, runtime):
        journal.say(f"continuing after step {state.done} of {plan.steps}")
    _check_agreement(processes, state.done, checkpoints)
    journal.rewind(state.done)

    trained = _averaging(objective, processes)
    stream = batches(state.done * own_passes)
    window = _Window(state.done, waited, processes)
    objective.train()
    with StopRequest().listening() as stop, journal.open_line(), processes.watched():
        while state.done < plan.steps:
            for group in state.optimizer.param_groups:
                group["lr"] = plan.lr_at(state.done) * group["lr_scale"]
            losses = _passes_of_step(trained, stream, state.done, passes, plan, runtime)
            limit = math.inf if optim.clip is None else optim.clip
            norm = nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
            total, grad_norm, signal_number = _agreed(losses, norm, stop, passes, processes)
            if math.isfinite(total) and math.isfinite(grad_norm):
                state.apply()
                window.add(losses)
            else:
                state.pass_over(total, grad_norm, loop.max_bad_steps, journal)
            state.optimizer.zero_grad(set_to_none=True)
            state.done += 1

            if is_due(state.done, loop.log_every, plan.steps):
                _log(window, state.done, plan, grad_norm, journal)
            is_evaluated = evaluators and is_due(state.done, loop.evaluate_every, plan.steps)
            try:
                if is_evaluated and processes.is_main:
                    with window.paused():
                        _evaluate(objective, average, evaluators, best, journal, state.done)
            finally:  # pictures that cannot be evaluated must not cost the steps since the last save
                is_saved = is_evaluated or is_due(state.done, loop.save_every, plan.steps) or signal_number is not None
                if is_saved and processes.is_main:
                    state.save(checkpoints)
            if is_saved:
                with window.paused():
                    processes.wait()
            if signal_number is not None and state.done < plan.steps:
                raise Interrupted(state.done, plan.steps, signal_number)
    if average is not None:
        average.swap()
    if state.bad_steps or not all(parameter.isfinite().all() for parameter in objective.parameters()):
        raise NumericalError(
            f"the run ended with numbers that are not finite after step {state.done}; start again in another --out with a "
            "lower --lr"
        )
    objective.eval()


@dataclass
class _State:
    """What training changes, and a checkpoint holds."""

    objective: nn.Module
    optimizer: Optimizer
    average: WeightAverage | None
    best: Best | None
    done: int = 0
    bad_steps: int = 0

    def restore(self, checkpoints: Checkpoints, runtime: Runtime) -> bool:
        """Continue the stored state, if there is one; whether there is."""
        stored = checkpoints.restore()
        if stored is None:
            return False
        try:
            self.objective.load_state_dict(stored["objective"])
            self.optimizer.load_state_dict(stored["optimizer"])
        except (RuntimeError, ValueError, KeyError):
            raise UserError(f"{checkpoints.folder} holds the state of another network; choose another --out") from None
        if self.average is not None:
            self.average.averages = {name: tensor.to(runtime.device) for name, tensor in stored["average"].items()}
        if self.best is not None:
            self.best.value = stored["best"]
        self.done, self.bad_steps = stored["step"], stored["bad_steps"]
        return True

    def save(self, checkpoints: Checkpoints) -> None:
        """Store all of it."""
        checkpoints.save(
            self.done,
            {
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": {} if self.average is None else self.average.averages,
                "step": self.done,
                "bad_steps": self.bad_steps,
                "best": -math.inf if self.best is None else self.best.value,
            },
        )

    def apply(self) -> None:
        """Step by the gradients."""
        self.optimizer.step()
        self.bad_steps = 0
        if self.average is not None:
            self.average.update()

    def pass_over(self, total: float, grad_norm: float, most: int, journal: Journal) -> None:
        """Leave out a step that is not finite; raise a `NumericalError` if it is the `most`-th in a row."""
        self.bad_steps += 1
        sentence = f"step {self.done + 1} was not applied: loss {total:g}, gradient norm {grad_norm:g}"
        journal.record("note", self.done + 1, text=sentence)
        journal.say(sentence)
        if self.bad_steps >= most:
            raise NumericalError(
                f"{self.bad_steps} steps in a row were not finite, the last was step {self.done + 1}; start again in another "
                "--out with a lower --lr, a smaller --optim.clip, or --precision float32"
            )


def _passes_of_step(
    trained: nn.Module, stream: Iterator[Batch], done: int, passes: int, plan: Plan, runtime: Runtime
) -> list[Loss]:
    """The losses of this process's forward passes in the step after `done`, whose gradients are added up."""
    processes, losses = runtime.processes, []
    own_passes = passes // processes.world
    for own in range(own_passes):
        batch = next(stream)
        number = done * passes + own * processes.world + processes.rank
        # What a forward pass draws (drop path, Gumbel noise) depends on the seed and its number alone.
        torch.manual_seed((plan.seed * SEED_STRIDE + number) % 2**63)
        with _added_up(trained, is_last=own == own_passes - 1):
            with runtime.precision():
                loss = trained(batch, done / plan.steps)
            # Gradients are then averaged over processes, so each scales by its own share of the passes.
            (loss.total / own_passes).backward()
        losses.append(loss)
    return losses


def _log(window: _Window, done: int, plan: Plan, grad_norm: float, journal: Journal) -> None:
    """Record what happened since the last log line, and show it."""
    values = window.close(done)
    values.update(lr=plan.lr_at(done - 1), grad_norm=grad_norm, epoch=done / plan.steps_per_epoch)
    values["images_per_second"] = values.pop("steps_per_second") * plan.pictures_per_step
    journal.record("train", done, **values)
    journal.progress(_line(done, plan, values), is_last=done == plan.steps)


def _check_agreement(processes: Processes, done: int, checkpoints: Checkpoints) -> None:
    """Raise a `UserError` where processes would continue from different steps."""
    for rank, step in enumerate(processes.gather(done)):
        if step != done:
            raise UserError(
                f"process {rank} found the state after step {step} in {checkpoints.folder} and process {processes.rank} that "
                f"after step {done}; choose an --out on a disk that all machines share"
            )


def _averaging(objective: nn.Module, processes: Processes) -> nn.Module:
    """The objective, with gradients that are averaged over processes where there are several.

    Buffers are those of process 0, so an objective that counts must add up what all processes counted.
    """
    if processes.world == 1:
        return objective
    # A 1x1 convolution's gradient may come with the strides of a matrix: the same numbers, nothing a user could do about it.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return DistributedDataParallel(objective)


def _added_up(trained: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Where gradients of a pass are only added up, until those of a step's last pass are averaged over processes too."""
    return trained.no_sync() if isinstance(trained, DistributedDataParallel) and not is_last else nullcontext()


def _agreed(
    losses: Sequence[Loss], norm: Tensor, stop: StopRequest, passes: int, processes: Processes
) -> tuple[float, float, int | None]:
    """A step's mean loss and gradient norm, and the signal that asks to stop: the same in all processes.

    The one place in a step where the host waits for the device.
    """
    received = norm.new_tensor([float(stop.signal_number == number) for number in SIGNALS])
    loss = torch.stack([loss.total.detach().to(norm) for loss in losses]).sum()
    together = processes.add_up(torch.cat([loss[None], received]))
    total, grad_norm, *counts = torch.cat([together[:1], norm[None], together[1:]]).tolist()
    numbers = [number for number, count in zip(SIGNALS, counts, strict=True) if count]
    return total / passes, grad_norm, numbers[0] if numbers else None


class _Window:
    """What happened since the last log line; values stay on the device until the line is due."""

    def __init__(self, step: int, waited: WaitMeter, processes: Processes) -> None:
        self.waited = waited
        self.processes = processes
        self._restart(step)

    def add(self, losses: Sequence[Loss]) -> None:
        """Count the forward passes of one step."""
        for loss in losses:
            for name, value in {"loss": loss.total, **loss.parts}.items():
                self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach()
            self.passes += 1

    def close(self, step: int) -> dict[str, float]:
        """Means over all passes since the last call, steps per second, and the share of time this process waited for data."""
        values: dict[str, float] = {}
        if self.sums:
            device = self.sums["loss"].device
            sums = self.processes.add_up(torch.stack([value.float().to(device) for value in self.sums.values()]))
            passes = self.passes * self.processes.world
            values = {name: value / passes for name, value in zip(self.sums, sums.tolist(), strict=True)}
        seconds = time.perf_counter() - self.start
        values["steps_per_second"] = (step - self.step) / seconds
        values["data_wait"] = (self.waited.seconds - self.waited_before) / seconds
        self._restart(step)
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def _restart(self, step: int) -> None:
        self.step, self.start, self.waited_before = step, time.perf_counter(), self.waited.seconds
        self.sums: dict[str, Tensor] = {}
        self.passes = 0


def _evaluate(
    objective: nn.Module,
    average: WeightAverage | None,
    evaluators: Sequence[Evaluator],
    best: Best | None,
    journal: Journal,
    step: int,
) -> None:
    objective.eval()
    values: dict[str, float] = {}
    with torch.no_grad():
        if average is not None:
            average.swap()
        try:
            for evaluator in evaluators:
                values.update({f"{evaluator.name}/{name}": value for name, value in evaluator.run()})
            if best is not None:
                best.offer(values)
        finally:  # what is saved after a failure must be the weights that train, not their averages
            if average is not None:
                average.swap()
    journal.record("evaluate", step, **values)
    journal.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    objective.train()


def _line(done: int, plan: Plan, values: dict[str, float]) -> str:
    """The progress line: where we are, how it goes, how fast, how long still."""
    hidden = ("lr", "grad_norm", "epoch", "images_per_second", "data_wait")
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name not in hidden)
    speed = values["images_per_second"]
    left = duration((plan.steps - done) * plan.pictures_per_step / speed)
    return f"step {done}/{plan.steps}  {metrics}  {speed:.0f} images/s, {values['data_wait']:.0%} waiting for data, {left} left"
