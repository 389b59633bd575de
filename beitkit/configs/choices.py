"""Options chosen from the data, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from beitkit.configs.train import DeviceKind

BASE_WIDTH = 768
"""Of the network that the paper's rates were found for."""
EVALUATIONS = 20
"""Of a run that may stop early."""
CURVE, CURVE_SHARE, CURVE_STEPS = 5, 0.05, 50
"""Evaluations that draw a run's curve where nobody said how many, the largest share of its time that they may take, and the steps
from which on a run has a curve."""
FORWARD = 1 / 3
"""Cost of an image's forward pass, of its share of a training step."""
Choice = TypeVar("Choice", int, float, str, tuple[float, float])


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the choices of any verb depend on."""

    images: int
    """Training images."""
    side: int
    """Median of their shorter sides, in pixels."""
    patch: int
    width: int
    depth: int
    """Of the network."""
    device: DeviceKind


def narrowness(width: int) -> float:
    """How much more learning rate a network narrower than the base size bears: the root of the ratio (decision 006)."""
    return max(1.0, (BASE_WIDTH / width) ** 0.5)


def evaluate_every(steps: float) -> tuple[int, str]:
    """Steps between the evaluations that patience counts, and why, where nobody said."""
    return max(1, round(steps / EVALUATIONS)), f"a {EVALUATIONS}th of the run, for `patience` to count"


def curve_every(steps: int, trained: int, judged: int) -> int:
    """Steps between evaluations where nobody said: a fifth of the run, so that it has a curve, or 0 for its end alone.

    `trained` are the images of all steps, `judged` those of an evaluation.
    """
    takes = (CURVE - 1) * judged * FORWARD / trained
    return -(-steps // CURVE) if steps >= CURVE_STEPS and takes <= CURVE_SHARE else 0


class Choices:
    """Keeps what is given, chooses what is not, and remembers why."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def pick(self, given: Choice | None, name: str, rule: tuple[Choice, str]) -> Choice:
        """The given value, or else that of the rule; the rule's reason is then kept."""
        value, reason = rule
        if given is None:
            self.lines.append(f"{name} {_said(value)}: {reason}")
        return value if given is None else given


def _said(value: int | float | str | tuple[float, float]) -> str:
    """As it is typed on a command line."""
    if isinstance(value, tuple):
        return " ".join(_said(each) for each in value)
    return value if isinstance(value, str) else format(value, ".4g")
