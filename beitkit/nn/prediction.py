"""What a classifier says about one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Guess(NamedTuple):
    """A class, and how probable it is."""

    name: str
    probability: float


class Prediction(NamedTuple):
    """The classes of one picture."""

    best: tuple[Guess, ...]
    """The most probable classes, best first."""
    probabilities: dict[str, float]
    """All classes, best first."""

    @classmethod
    def of(cls, classes: Sequence[str], probabilities: Float[Tensor, " classes"], top: int) -> Prediction:
        """The prediction of these probabilities, with at most `top` classes in `best`."""
        order = probabilities.argsort(descending=True, stable=True).tolist()
        guesses = [Guess(classes[int(index)], probabilities[index].item()) for index in order]
        return cls(tuple(guesses[:top]), dict(guesses))

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.best[0].name

    @property
    def probability(self) -> float:
        """How probable it is."""
        return self.best[0].probability
