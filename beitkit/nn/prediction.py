"""Predictions for one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, UInt8
from torch import Tensor

from beitkit.configs.model import ClassifierConfig
from beitkit.errors import UserError


def check_outputs(outputs: Float[Tensor, "b ..."], name: str = "the network") -> None:
    """Raise a `UserError` if what a network gives some images is not finite: comparisons with NaN are silently false."""
    bad = int((~outputs.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise UserError(
            f"the outputs of {name} are not finite (NaN or infinite) for {bad} of {len(outputs)} images; its weights are bad, "
            "or too large for the precision: try `precision='float32'`"
        )


def class_probabilities(logits: Float[Tensor, "b classes"], config: ClassifierConfig) -> Float[Tensor, "b classes"]:
    """Softmax in float32 of the logits over the temperature; sigmoid if multi-label."""
    scaled = logits.float() / config.temperature
    return scaled.sigmoid() if config.multilabel else scaled.softmax(dim=1)


class Guess(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


class Prediction(NamedTuple):
    """Class probabilities of one image."""

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
        """Its probability."""
        return self.best[0].probability


class ScenePrediction(NamedTuple):
    """Label map of one image."""

    classes: tuple[str, ...]
    """Names, by id."""
    label_map: UInt8[Tensor, "h w"]
    """Class ids, at the image's size."""
    area: Float[Tensor, " classes"]
    """Share of the pixels assigned to each class."""
    confidence: Float[Tensor, " classes"]
    """Mean probability of a class over its pixels; NaN if it has none."""

    @property
    def areas(self) -> dict[str, float]:
        """Share of the pixels by class, largest first, without classes that do not occur."""
        order = self.area.argsort(descending=True, stable=True).tolist()
        return {self.classes[index]: self.area[index].item() for index in order if self.area[index] > 0}
