"""What a recipe is: a function that returns a verb's complete config, and what one should know before spending the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import cleandoc
from pathlib import Path
from typing import Generic, Literal, TypeVar

from beitkit.configs.train import resolved
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.segment.config import SegmentRun

IMAGES, MODEL, OUT = Path("IMAGES"), Path("MODEL"), Path("OUT")
"""What stands in a recipe's config for the paths that a run has to be given."""
RecipeVerb = Literal["pretrain", "finetune", "segment"]
Run = TypeVar("Run", PretrainRun, FinetuneRun, SegmentRun)


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[Run]):
    """A named config of a verb; call it to get the config, in which only the paths are missing (`paths`)."""

    make: Callable[[], Run]
    source: str
    """Where the values were published: table, README or paper, and the section of our fact sheet."""
    published: str
    """The number its authors report, or that there is none."""
    hardware: str
    """What its authors ran it on, as far as they say."""
    measured: str | None = None
    """What it reached with this code; None was not measured."""

    def __call__(self) -> Run:
        """The complete config, which knows the recipe's name."""
        return replace(self.make(), recipe=self.name)

    @property
    def name(self) -> str:
        """What `--recipe` takes."""
        return self.make.__name__.replace("_", "-")

    @property
    def verb(self) -> RecipeVerb:
        """The verb it configures."""
        config = self()
        return "pretrain" if isinstance(config, PretrainRun) else "segment" if isinstance(config, SegmentRun) else "finetune"

    @property
    def paths(self) -> list[str]:
        """The fields that a run has to be given."""
        config = self()
        return [field.name for field in fields(config) if getattr(config, field.name) in (IMAGES, MODEL, OUT)]

    @property
    def what(self) -> str:
        """What it reproduces, in one sentence."""
        return self.text.partition("\n\n")[0].replace("\n", " ")

    @property
    def text(self) -> str:
        """What it reproduces, and what is ours in it."""
        return cleandoc(self.make.__doc__ or "")

    @property
    def batch(self) -> str:
        """Images per optimizer step, and how one process makes them."""
        size, accumulation_steps = self._batch()
        return f"{size * accumulation_steps} = {size} x {accumulation_steps} passes"

    @property
    def rate(self) -> str:
        """The peak learning rate, the batch it is stated for, and how it follows yours."""
        config = self()
        optim, lr = config.optim, resolved(config.train.lr)
        size, accumulation_steps = self._batch()
        batch = size * accumulation_steps
        here, half = (lr * optim.scale(size) for size in (batch, batch // 2))
        return f"{lr:g} at {optim.lr_batch} images a step ({optim.lr_scaling}): {here:.3g} at {batch}, {half:.3g} at {batch // 2}"

    def _batch(self) -> tuple[int, int]:
        """Images per forward pass, and passes per step."""
        config: PretrainRun | FinetuneRun | SegmentRun = self()
        return resolved(config.train.batch_size), resolved(config.loop.accumulate)


def recipe(
    *, source: str, published: str, hardware: str, measured: str | None = None
) -> Callable[[Callable[[], Run]], Recipe[Run]]:
    """Decorator: the function is a recipe, its name the recipe's (with dashes), its docstring what it reproduces."""

    def decorate(make: Callable[[], Run]) -> Recipe[Run]:
        return Recipe(make=make, source=source, published=published, hardware=hardware, measured=measured)

    return decorate
