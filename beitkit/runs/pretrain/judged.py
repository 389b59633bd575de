"""How a pre-training run is judged along the way, and whether one with `init` got better than its start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import few_per_class, train_and_val
from beitkit.data.stream import Reading, evaluation_batches, evaluation_dataset
from beitkit.errors import UserError
from beitkit.evaluation.probe import HeldOutProbe, held_out_count
from beitkit.nn.models import MaskedImageModel
from beitkit.report.journal import read_journal, series
from beitkit.report.normal import Line
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.init import StartRecord
from beitkit.train.machine.runtime import Runtime

LABELED_IMAGES = 2_000
"""At most so many of `labels` are looked at in an evaluation."""
PROBED, MASKED = "labels/linear", "fixed/loss"
"""What is best: the linear probe where there are labels, else the masked loss on the fixed images."""


def labeled_images(config: PretrainRun) -> ImageList | None:
    """The images of `labels` that judge the blocks: of the training part only, so that nothing is chosen on the other.

    Raises:
        UserError: if they cannot be read, or have several labels each.
    """
    if config.labels is None:
        return None
    train, _ = train_and_val(config.labels, None, config.train.seed)
    if train.labels is None:
        raise UserError(f"{config.labels} has several labels an image; `labels` takes images with one")
    held_out_count(train.labels)
    if len(train) > LABELED_IMAGES >= len(train.classes):
        return few_per_class(train, LABELED_IMAGES, config.train.seed)
    return train


def probe_of(model: MaskedImageModel, files: ImageList, reading: Reading, runtime: Runtime) -> HeldOutProbe:
    """The evaluator of `labels`."""
    dataset = evaluation_dataset(files, model.config.backbone, model.config.preprocessing, is_repeated=True)
    preprocessing = model.config.preprocessing
    return HeldOutProbe(
        model.backbone,
        lambda share: evaluation_batches(dataset, preprocessing, reading, share),
        len(files.classes),
        runtime.precision,
    )


class Judgment(NamedTuple):
    """What a run with `init` came to."""

    metric: str
    """`PROBED` or `MASKED`."""
    start: float
    """The metric of the start: before the first step, or where a fresh head learned alone, after that."""
    best: float
    step: int
    """After which step it was best."""
    head_steps: int
    has_fresh_head: bool
    held_out: int
    """Labeled images that the probe is judged on; 0 where the masked loss is."""

    @classmethod
    def of(cls, journal: Path, beginning: StartRecord, labeled: ImageList | None) -> Judgment:
        """Of a run whose training is done."""
        metric = MASKED if labeled is None else PROBED
        points = series(read_journal(journal), metric, "evaluate")
        values = {int(step): value for step, value in zip(points.steps, points.values, strict=True)}
        sign = -1 if metric == MASKED else 1
        finite = [step for step in values if math.isfinite(values[step])]
        step = max(finite, key=lambda step: (sign * values[step], -step), default=0)
        held_out = 0 if labeled is None or labeled.labels is None else held_out_count(labeled.labels)
        start, best = (values.get(when, math.nan) for when in (beginning.head_steps, step))
        return cls(metric, start, best, step, beginning.head_steps, beginning.has_fresh_head, held_out)

    @property
    def is_better(self) -> bool:
        """Whether an evaluation beat the start's."""
        return self.step > self.head_steps

    @property
    def is_clear(self) -> bool:
        """Whether the best beats the start by more than chance; always, where the same images have a smaller loss."""
        return self.is_better and (self.metric == MASKED or self.gain > self.margin)

    @property
    def gain(self) -> float:
        """How much better the best is than the start; nats, or a share."""
        return self.best - self.start if self.metric == PROBED else self.start - self.best

    @property
    def margin(self) -> float:
        """Two standard errors of a difference of two shares of that many images; 0 for a loss."""
        spread = sum(share * (1 - share) for share in (self.start, self.best))
        return 2 * math.sqrt(spread / self.held_out) if self.held_out else 0.0

    def as_json(self) -> dict[str, Any]:
        """For result.json; a number that is not finite is null."""
        numbers = {"start": self.start, "best": self.best, "gain": self.gain, "margin": self.margin}
        whole = {"step": self.step, "head_steps": self.head_steps, "held_out": self.held_out, "is_better": self.is_better}
        whole |= {"is_clear": self.is_clear}
        clean = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {"metric": self.metric, **clean, **whole, "sentence": self.sentence()}

    def sentence(self) -> str:
        """What came of it, plainly."""
        if not self.is_better:
            return (
                f"step 0 was better: no evaluation beat the start's {self._words(self.start)}; use the start as it is. "
                f"The finished model is the start{', with a head trained for this tokenizer' if self.head_steps else ''}"
            )
        start = "at the start" if not self.head_steps else f"after the {self.head_steps} steps of the head alone"
        verdict = "better than step 0" if self.is_clear else "not clearly better than step 0"
        found = f"{verdict}: {self._words(self.best)} after step {self.step}, {self._value(self.start)} {start}"
        if self.metric == PROBED:
            sure = "more" if self.is_clear else "less"
            chance = f"{sure} than the {100 * self.margin:.1f} that chance explains on {self.held_out} images"
            return f"{found}: {100 * self.gain:+z.1f} points, {chance}. The finished model is the one of that step"
        doubt = (
            "; the head was fresh, and a part of this is the head's alone: `labels` judge the blocks"
            if self.has_fresh_head
            else ""
        )
        return f"{found}: {self.gain:.3g} less{doubt}. The finished model is the one of that step"

    def line(self) -> Line:
        """For "is this normal?"."""
        if not self.is_better:
            advice = "lower `lr`, or train on more images"
            return Line("warn", f"Not better than its start: {self.sentence()}. To go on all the same, {advice}.")
        sentence = self.sentence()
        return Line("ok" if self.is_clear else "note", f"{sentence[0].upper()}{sentence[1:]}.")

    def _words(self, value: float) -> str:
        return f"linear probe {self._value(value)}" if self.metric == PROBED else f"masked loss {self._value(value)}"

    def _value(self, value: float) -> str:
        return f"{value:.1%}" if self.metric == PROBED else f"{value:.4g}"
