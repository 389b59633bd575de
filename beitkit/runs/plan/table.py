"""The plan as a table: every figure with its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.command.following import command, kept, unused
from beitkit.configs.tokenizer import PUBLISHED_DVAES
from beitkit.planning.estimate import Operations, StepSeconds
from beitkit.planning.gpu import Computed
from beitkit.planning.memory import Memory
from beitkit.planning.rates import Given, Measured
from beitkit.runs.plan.config import PlanRun
from beitkit.runs.plan.subject import Subject
from beitkit.train.journal import duration

GIB = 2**30
HOUR = 3600
CLOSED, COUNTED, TRACED, OPTIONS = "closed form", "counted", "traced", "from the options"
MEASURED = "measured here now"


class Figure(NamedTuple):
    """One number of the plan."""

    part: str
    name: str
    value: float
    unit: str
    source: str

    @property
    def text(self) -> str:
        """The number as people read it."""
        if self.unit == "bytes":
            return f"{self.value / GIB:.2f} GiB"
        if self.unit == "FLOP":
            exponent, prefix = next((step for step in ((18, "E"), (15, "P"), (12, "T")) if self.value >= 10 ** step[0]), (9, "G"))
            return f"{self.value / 10**exponent:.4g} {prefix}FLOP"
        if self.unit == "s":
            return f"{self.value:.3g} s" if self.value < 60 else duration(self.value)
        if self.unit == "images/s":
            return f"{self.value:,.4g}"
        return {"h": f"{self.value:.4g} h", "price": f"{self.value:,.2f}"}.get(self.unit, f"{self.value:,.10g}")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What `beitkit plan` found out."""

    config: PlanRun
    subject: Subject
    device: str
    precision: str
    rates: Measured | Given | Computed
    operations: Operations
    memory: Memory
    limit: int | None
    """Bytes of each device; None is not known."""
    step: StepSeconds
    evaluating: float
    """Seconds of all evaluations."""
    advice: tuple[str, ...]
    """What would fit, where this does not."""

    @property
    def seconds(self) -> float:
        """The whole run, without starting and saving."""
        return self.subject.length.steps * self.step.total + self.evaluating

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None where it is not known how much there is."""
        return None if self.limit is None else self.memory.peak <= self.limit

    @property
    def cost(self) -> float | None:
        """In the unit of the price; None without one."""
        price = self.config.price
        return None if price is None else price * self.config.gpus * self.seconds / HOUR

    def figures(self) -> list[Figure]:
        """All numbers, in the order in which they are shown."""
        return [*self._length(), *self._operations(), *self._memory(), *self._time()]

    def described(self) -> dict[str, Any]:
        """All there is to say, as JSON."""
        return {
            "verb": self.subject.verb,
            "recipe": self.config.recipe,
            "device": self.device,
            "precision": self.precision,
            "gpus": self.config.gpus,
            "peak_bytes": self.memory.peak,
            "fits": self.fits,
            "seconds": self.seconds,
            "step_seconds": self.step.total,
            "cost": self.cost,
            "figures": [figure._asdict() for figure in self.figures()],
            "advice": list(self.advice),
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What the figures leave out."""
        length, notes = self.subject.length, []
        if isinstance(self.rates, Given):
            notes.append(
                "reading images, the optimizer's update, and what a GPU's driver and libraries hold are left out: not measured"
            )
        elif isinstance(self.rates, Computed):
            notes.append(
                "times are computed, not measured (docs/guide/plan.md says from what); reading images, waiting, and what a GPU's "
                "driver and libraries hold are left out"
            )
        elif self.rates.reading is None:
            notes.append("reading images is left out; --image-folder FOLDER times it")
        if length.devices > 1 and self.config.bandwidth is None:
            notes.append("what devices exchange is left out; --bandwidth says how fast it goes")
        if length.devices > 1 and isinstance(self.rates, Measured):
            notes.append(f"time is that of {length.devices} devices like this one")
        if self.precision != "float32" and self.subject.workload.tokenizer is not None:
            notes.append(
                f"the tokenizer is taken to find the tokens of float32 in {self.precision}; a run tries that, and says if not"
            )
        if self.subject.verb != "pretrain" and self.config.validation is None:
            notes.append("evaluations are left out; --validation says how many images they look at")
        return notes

    def _length(self) -> list[Figure]:
        length = self.subject.length
        rows = {
            "steps": length.steps,
            "images a step": length.images_per_step,
            "passes a step, each device": length.accumulation_steps // length.devices,
            "images shown": length.images,
            "parameters": self.subject.workload.parameters,
        }
        return [Figure("length", name, value, "", OPTIONS) for name, value in rows.items()]

    def _operations(self) -> list[Figure]:
        workload, flops = self.subject.workload, self.subject.workload.flops
        rows = [("an image forward", name, value) for name, value in (*flops._asdict().items(), ("all", flops.forward))]
        rows.append(("an image", "forward and backward", flops.step(recompute=self.config.recompute)))
        if workload.tokenizer is not None:
            rows.append(("an image", "tokenizer", workload.tokenizer_flops))
        rows += [("the run", name, value) for name, value in self.operations._asdict().items() if value]
        rows.append(("the run", "all", self.operations.total))
        return [Figure(part, name, value, "FLOP", COUNTED) for part, name, value in rows]

    def _memory(self) -> list[Figure]:
        memory, part = self.memory, "memory of a device"
        rows = [
            ("process, Python and torch", memory.process, MEASURED),
            ("weights", memory.weights, CLOSED),
            ("gradients", memory.gradients, CLOSED),
            ("AdamW's moments", memory.moments, CLOSED),
            ("average of the weights", memory.average, CLOSED),
            ("activations kept", memory.traced.activations, TRACED),
            ("of these, casts of weights", memory.traced.cast_weights, TRACED),
            ("logits and loss", memory.traced.logits, TRACED),
            ("tokenizer's weights", memory.tokenizer, CLOSED),
            ("tokenizer at work", memory.tokenizer_activations, TRACED),
            ("tokenizer, tried at the start", memory.trial, TRACED),
            ("batch", memory.batch, CLOSED),
            ("buckets, gathered blocks", memory.exchange, CLOSED),
            ("allocator's surplus", memory.surplus, MEASURED),
        ]
        figures = [Figure(part, name, value, "bytes", source) for name, value, source in rows if value]
        figures += [Figure(part, f"in all, {name}", value, "bytes", "sum") for name, value in memory.moments_in_time.items()]
        return [*figures, Figure(part, "peak", memory.peak, "bytes", "the most of these")]

    def _time(self) -> list[Figure]:
        source = MEASURED if isinstance(self.rates, Measured) else self.rates.source
        names = {"network": "forward and backward", "tokenizer": "tokenizer", "reading": "waiting for images",
                 "update": "update", "exchange": "exchange"}  # fmt: skip
        figures = []
        if isinstance(self.rates, Given):
            figures.append(Figure("time", "FLOP a second, each device", self.rates.flops_per_second, "FLOP", source))
        for name, value in self.step._asdict().items():
            if value:
                figures.append(Figure("a step", names[name], value, "s", "given bandwidth" if name == "exchange" else source))
        figures.append(Figure("a step", "all", self.step.total, "s", "sum"))
        rate = self.subject.length.own_images / self.step.total
        figures.append(Figure("a second", "images, each device", rate, "images/s", "images a step / all"))
        if self.evaluating:
            figures.append(Figure("the run", "evaluations", self.evaluating, "s", source))
        made_of = "steps x a step, evaluations" if self.evaluating else "steps x a step"
        figures.append(Figure("the run", "time", self.seconds, "s", made_of))
        figures.append(Figure("the run", "device hours", self.seconds * self.config.gpus / HOUR, "h", "time x devices"))
        if self.cost is not None:
            figures.append(Figure("the run", "cost", self.cost, "price", "time x devices x given price"))
        return figures


def print_estimate(estimate: Estimate) -> None:
    """The plan for people, on stdout; the last line says what to do next."""
    length = estimate.subject.length
    recipe = "" if estimate.config.recipe is None else f" by the recipe {estimate.config.recipe}"
    where = f"{length.devices} x {estimate.device}" if length.devices > 1 else estimate.device
    print(f"{estimate.subject.verb}{recipe}: {estimate.config.images:,} images; {where}; planned in {estimate.precision}\n")
    shown = ""
    for figure in estimate.figures():
        part = "" if figure.part == shown else figure.part
        print(f"{part:<19} {figure.name:<27} {figure.text:>16}  {figure.source}")
        shown = figure.part
    for note in estimate.notes():
        print(f"note: {note}")
    print(_next(estimate))


def _next(estimate: Estimate) -> str:
    if estimate.fits is False:
        assert estimate.limit is not None
        said = f"does not fit: {estimate.memory.peak / GIB:.1f} GiB are needed, {estimate.limit / GIB:.1f} are there."
        return f"{said} What would: " + (", or ".join(estimate.advice) or "a smaller --size, or devices with more memory")
    return f"Next: {_command(estimate)}"


def _command(estimate: Estimate) -> str:
    """The run that is planned."""
    config, verb, length = estimate.config, estimate.subject.verb, estimate.subject.length
    start: dict[str, object] = {"recipe": config.recipe}
    if verb == "pretrain":
        has_tokens = getattr(estimate.subject.run, "target", "tokens") == "tokens"
        start["tokenizer"] = "TOKENIZER" if config.tokenizer in PUBLISHED_DVAES else config.tokenizer
        start = start if has_tokens else {"recipe": config.recipe}
        images, start["tokens"] = "IMAGES", "TOKENS" if config.cached else None
        described = kept(config, "size", "patch", "views")
    else:
        images, start["model"] = {"finetune": "LABELED", "segment": "SCENES"}[verb], "MODEL"
        described = {}
    given = kept(config, "image_size", "epochs", "steps", "workers", "threads", "precision")
    return command(
        verb,
        config.image_folder or images,
        **start,
        out=unused(Path("runs") / (config.recipe or "pre")),
        **described,
        **given,
        batch_size=length.batch_size,
        **{
            "--loop.accumulate": None if length.accumulation_steps == config.gpus else length.accumulation_steps,
            "--speed.recompute": config.recompute,
            "--speed.sharding": None if config.sharding == "none" else config.sharding,
        },
    )
