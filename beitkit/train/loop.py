"""The one training loop: tokenizer, pre-training and fine-tuning all pass through `fit`.

The job is a module with one forward, `objective(batch, progress) -> Loss`; targets arrive in the batch; evaluators yield
numbers. Step k's batches and random numbers depend only on (seed, k), so a run that was cut continues as if it had not
been: nothing is replayed and no generator state is stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.contracts import Batch, Evaluator, Loss
from beitkit.errors import Interrupted, NumericalError, UserError
from beitkit.train.checkpoint import Checkpoints
from beitkit.train.journal import Journal, WaitMeter, duration
from beitkit.train.optim import Group, make_optimizer
from beitkit.train.runtime import Runtime, StopRequest
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
        batches: first batch index -> endless stream, so that a continued run needs no replay.
        groups: parameters with their learning-rate factors and weight decay.
        plan: length and learning rates in steps.
        loop: how often to log, evaluate and save, and what to do about steps that are not finite.
        optim: the optimizer's constants.
        runtime: device and precision.
        journal: where events go.
        checkpoints: where the state goes; a state found there is continued.
        waited: meter inside the stream, for the share of time spent waiting for data.
        evaluators: run every `loop.evaluate_every` steps and at the end.
        best: keeps the weights of the best evaluation.

    Raises:
        NumericalError: after `loop.max_bad_steps` steps in a row whose loss or gradient is not finite.
        Interrupted: after a signal, with everything saved.
    """
    optimizer = make_optimizer(groups, optim)
    average = WeightAverage(objective, loop.ema) if loop.ema else None
    parameters = [parameter for group in groups for parameter in group["params"]]
    done = bad_steps = 0
    state = checkpoints.restore()
    if state is not None:
        try:
            objective.load_state_dict(state["objective"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError):
            raise UserError(f"{checkpoints.folder} holds the state of another network; choose another --out") from None
        if average is not None:
            average.averages = {name: tensor.to(runtime.device) for name, tensor in state["average"].items()}
        if best is not None:
            best.value = state["best"]
        done, bad_steps = state["step"], state["bad_steps"]
        journal.say(f"continuing after step {done} of {plan.steps}")
    journal.rewind(done)

    stream = batches(done * loop.accumulate)
    window = _Window(done, waited)
    objective.train()
    with StopRequest().listening() as stop, journal.open_line():
        while done < plan.steps:
            for group in optimizer.param_groups:
                group["lr"] = plan.lr_at(done) * group["lr_scale"]

            losses = []
            for part in range(loop.accumulate):
                batch = next(stream)
                # What a forward pass draws (drop path, Gumbel noise) depends on the seed and its number alone.
                torch.manual_seed((plan.seed * SEED_STRIDE + done * loop.accumulate + part) % 2**63)
                with runtime.precision():
                    loss = objective(batch, done / plan.steps)
                (loss.total / loop.accumulate).backward()
                losses.append(loss)
            total = torch.stack([loss.total.detach() for loss in losses]).mean().item()
            limit = math.inf if optim.clip is None else optim.clip
            grad_norm = nn.utils.clip_grad_norm_(parameters, limit, foreach=True).item()

            if math.isfinite(total) and math.isfinite(grad_norm):
                optimizer.step()
                bad_steps = 0
                window.add(losses)
                if average is not None:
                    average.update()
            else:
                bad_steps += 1
                sentence = f"step {done + 1} was not applied: loss {total:g}, gradient norm {grad_norm:g}"
                journal.record("note", done + 1, text=sentence)
                journal.say(sentence)
                if bad_steps >= loop.max_bad_steps:
                    raise NumericalError(
                        f"{bad_steps} steps in a row were not finite, the last was step {done + 1}; start again in another --out "
                        "with a lower --lr, a smaller --optim.clip, or --precision float32"
                    )
            optimizer.zero_grad(set_to_none=True)
            done += 1

            if is_due(done, loop.log_every, plan.steps):
                values = window.close(done)
                values.update(lr=plan.lr_at(done - 1), grad_norm=grad_norm, epoch=done / plan.steps_per_epoch)
                values["images_per_second"] = values.pop("steps_per_second") * plan.pictures_per_step
                journal.record("train", done, **values)
                journal.progress(_line(done, plan, values), is_last=done == plan.steps)
            is_evaluated = evaluators and is_due(done, loop.evaluate_every, plan.steps)
            try:
                if is_evaluated:
                    with window.paused():
                        _evaluate(objective, average, evaluators, best, journal, done)
            finally:  # pictures that cannot be evaluated must not cost the steps since the last save
                if is_evaluated or is_due(done, loop.save_every, plan.steps) or stop.signal_number is not None:
                    checkpoints.save(
                        done,
                        {
                            "objective": objective.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "average": {} if average is None else average.averages,
                            "step": done,
                            "bad_steps": bad_steps,
                            "best": -math.inf if best is None else best.value,
                        },
                    )
            if stop.signal_number is not None and done < plan.steps:
                raise Interrupted(done, plan.steps, stop.signal_number)
    if average is not None:
        average.swap()
    if bad_steps or not all(parameter.isfinite().all() for parameter in objective.parameters()):
        raise NumericalError(
            f"the run ended with numbers that are not finite after step {done}; start again in another --out with a lower --lr"
        )
    objective.eval()


class _Window:
    """What happened since the last log line; values stay on the device until the line is due."""

    def __init__(self, step: int, waited: WaitMeter) -> None:
        self.waited = waited
        self._restart(step)

    def add(self, losses: Sequence[Loss]) -> None:
        """Count the forward passes of one step."""
        for loss in losses:
            for name, value in {"loss": loss.total, **loss.parts}.items():
                self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.passes += 1

    def close(self, step: int) -> dict[str, float]:
        """Means since the last call, steps per second, and the share of time spent waiting for data."""
        seconds = time.perf_counter() - self.start
        values = {name: float(value) / self.passes for name, value in self.sums.items()}
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
        self.sums: dict[str, Tensor | int] = {}
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
