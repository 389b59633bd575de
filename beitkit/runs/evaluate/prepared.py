"""What the measuring of classifiers and of segmenters have in common: what is to be measured, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from beitkit.evaluation.comparison import AnyScores, ModelPair
from beitkit.train.machine.runtime import Runtime

ReportBroken = Callable[[Path, str], None]
"""Told of a file that cannot be read, and why."""


class Findings(NamedTuple):
    """What was found on the same images."""

    images: int
    scores: Sequence[AnyScores]
    """Of every network."""
    pairs: tuple[ModelPair, ...]
    rows: Iterable[Sequence[object]]
    """A table for every network and image, its header first; made when it is read."""


class Prepared(NamedTuple):
    """Networks and the images that they can be measured on; nothing has been read or written."""

    where: str
    """What the images are, in words."""
    measure: Callable[[Runtime, ReportBroken], Findings]
    file: str
    """Name of the table of every network and image."""
    facts: list[tuple[str, str]]
    """For the head of the report."""
    following: str
    """The command that comes next."""
