"""What a network says about one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, UInt8
from torch import Tensor


class Guess(NamedTuple):
    """A class, and how probable it is."""

    name: str
    probability: float


class Prediction(NamedTuple):
    """The classes of one image."""

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


class ScenePrediction(NamedTuple):
    """The classes of every pixel of one image."""

    classes: tuple[str, ...]
    """Names, by id."""
    label_map: UInt8[Tensor, "h w"]
    """Class ids, at the image's size."""
    area: Float[Tensor, " classes"]
    """Share of the pixels that each class was given."""
    confidence: Float[Tensor, " classes"]
    """Mean probability of a class over the pixels it was given; NaN where there are none."""

    @property
    def areas(self) -> dict[str, float]:
        """Share of the pixels by class, those that occur, largest first."""
        order = self.area.argsort(descending=True, stable=True).tolist()
        return {self.classes[index]: self.area[index].item() for index in order if self.area[index] > 0}
