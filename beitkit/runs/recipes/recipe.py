"""What a recipe is: a verb's complete config as it was published, with a name, a sentence and a source."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

from beitkit.configs.train import resolved
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.segment.config import SegmentRun

IMAGES, MODEL, OUT = Path("IMAGES"), Path("MODEL"), Path("OUT")
"""What stands in a recipe's config for the paths that a run has to be given."""
AnyRun = PretrainRun | FinetuneRun | SegmentRun
VERB_OF = {PretrainRun: "pretrain", FinetuneRun: "finetune", SegmentRun: "segment"}


@dataclass(frozen=True)
class Recipe:
    """A row of the table of recipes, in the order in which rows are written."""

    name: str
    """What `--recipe` takes."""
    what: str
    """What it reproduces, in one sentence."""
    source: str
    """Where the values were published: table, README or paper."""
    published: str
    """The number its authors report, or that there is none."""
    hardware: str
    """What its authors ran it on, as far as they say."""
    values: AnyRun
    """The config but for the recipe's name."""
    note: str = ""
    """What is ours in it, and what else one should know before spending the time."""
    measured: str | None = None
    """What it reached with this code; None was not measured."""

    @property
    def config(self) -> AnyRun:
        """The complete config, in which only the paths are missing (`paths`); it knows the recipe's name."""
        return replace(self.values, recipe=self.name)

    @property
    def verb(self) -> str:
        """The verb it configures."""
        return VERB_OF[type(self.values)]

    @property
    def paths(self) -> list[str]:
        """The fields that a run has to be given."""
        return [field.name for field in fields(self.values) if getattr(self.values, field.name) in (IMAGES, MODEL, OUT)]

    @property
    def text(self) -> str:
        """What it reproduces, and the note."""
        return f"{self.what}\n\n{self.note}".strip()

    @property
    def batch(self) -> str:
        """Images per optimizer step, and how one process makes them."""
        size, accumulation_steps = self._batch()
        return f"{size * accumulation_steps} = {size} x {accumulation_steps} passes"

    @property
    def rate(self) -> str:
        """The peak learning rate, the batch it is stated for, and how it follows yours."""
        optim, lr = self.values.optim, resolved(self.values.train.lr)
        size, accumulation_steps = self._batch()
        batch = size * accumulation_steps
        here, half = (lr * optim.scale(size) for size in (batch, batch // 2))
        return f"{lr:g} at {optim.lr_batch} images a step ({optim.lr_scaling}): {here:.3g} at {batch}, {half:.3g} at {batch // 2}"

    def _batch(self) -> tuple[int, int]:
        """Images per forward pass, and passes per step."""
        return resolved(self.values.train.batch_size), resolved(self.values.loop.accumulate)

    def config_without(self, given: Collection[str]) -> AnyRun:
        """The config for a run that overrides the options `given` (as in `steps`, `optim.warmup_epochs`).

        The recipe's length or warm-up makes way for one that is given in the other unit.
        """
        config = self.config
        if "steps" in given:
            config = replace(config, train=replace(config.train, epochs=None))
        if "epochs" in given:
            config = replace(config, train=replace(config.train, steps=None))
        if "optim.warmup_epochs" in given:
            config = replace(config, optim=replace(config.optim, warmup_steps=None))
        return config
