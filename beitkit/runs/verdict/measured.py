"""What each training reached, kept in a file of its own, so that the same command goes on where it was cut."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beitkit.errors import UserError
from beitkit.evaluation.longer import Gain, mean_gain, outlook
from beitkit.evaluation.verdict import Entrant
from beitkit.files import MOST_OWN, read_json
from beitkit.report.journal import read_journal
from beitkit.report.table import plain
from beitkit.runs.evaluate.model_paths import short_names
from beitkit.runs.verdict.config import SCRATCH
from beitkit.system import write_atomically


class NamedStart(NamedTuple):
    """Weights that a training starts from."""

    name: str
    """What tables call it: the last part of its path, or all of it where that is not enough."""
    slug: str
    """What its folders are called."""
    path: Path | None
    """None: fresh weights."""


class Outcome(NamedTuple):
    """What a training, or a floor, reached on the validation images."""

    score: float
    """Top-1, or mIoU."""
    images: list[float]
    """Score of each image, NaN where it has none (see `evaluation.verdict.Entrant`)."""
    seconds: float
    """Time to train, without what was the same for all."""
    pixel_accuracy: float | None = None
    class_iou: list[float] | None = None
    """IoU of each class, NaN where there is none; None for classifiers."""
    twice: Gain | None = None
    """What twice the steps would bring; None where that cannot be said, and of floors."""


class Kept:
    """The files of what was measured, in `measured/` of a run folder."""

    def __init__(self, out: Path, images: int, classes: int = 0) -> None:
        """`images` are compared on; `classes` are those whose IoU is measured, none for classifiers."""
        self.folder, self.images, self.classes = out / "measured", images, classes

    def has(self, slug: str, labels: int, seed: int) -> bool:
        """Whether this was measured before."""
        return self._path(slug, labels, seed).exists()

    def get(self, slug: str, labels: int, seed: int, measure: Callable[[], Outcome]) -> Outcome:
        """What was measured before, or is now."""
        path = self._path(slug, labels, seed)
        if path.exists():
            try:
                return self._read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{path} is damaged; remove it, and that part is measured again") from None
        found = measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(plain(found)).encode())
        return found

    def _read(self, path: Path) -> Outcome:
        """What a file holds; an OSError, ValueError, KeyError, TypeError or AttributeError if it is something else."""
        found = _outcome(read_json(path, MOST_OWN))
        if len(found.images) not in (0, self.images) or len(found.class_iou or ()) != self.classes:
            raise ValueError(path)
        return found

    def _path(self, slug: str, labels: int, seed: int) -> Path:
        return self.folder / f"{slug}-{labels}-{seed}.json"


def _outcome(content: Any) -> Outcome:
    """What a file of `Kept` holds."""
    accuracy, classes, twice = (content.get(name) for name in ("pixel_accuracy", "class_iou", "twice"))  # not of every task
    return Outcome(
        score=float(content["score"]),
        images=_numbers(content["images"]),
        seconds=float(content["seconds"]),
        pixel_accuracy=None if accuracy is None else float(accuracy),
        class_iou=None if classes is None else _numbers(classes),
        twice=None if twice is None else Gain(**{name: float(value) for name, value in twice.items()}),
    )


def _numbers(values: list[Any]) -> list[float]:
    """JSON has no NaN; a null stands for it."""
    return [math.nan if value is None else float(value) for value in values]


def named_starts(paths: Sequence[Path]) -> tuple[NamedStart, ...]:
    """The starts with names that tell them apart."""
    trained = [path for path in paths if path != SCRATCH]
    names = dict(zip(trained, short_names(trained), strict=True))
    starts: list[NamedStart] = []
    for path in paths:
        name = names.get(path, str(SCRATCH))
        if path != SCRATCH and name == str(SCRATCH):
            name = str(path)
        slug = re.sub(r"[^\w.]+", "_", name).strip("_.") or "start"
        while slug in {start.slug for start in starts}:
            slug += "_"
        starts.append(NamedStart(name, slug, None if path == SCRATCH else path))
    return tuple(starts)


def entry(name: str, found: Iterable[Outcome], *, is_floor: bool, probe: Sequence[float] | None = None) -> Entrant:
    """One row of the table: what was measured with each seed."""
    runs = list(found)
    gains = [run.twice for run in runs if run.twice is not None]
    accuracies = [run.pixel_accuracy for run in runs if run.pixel_accuracy is not None]
    by_class = [tuple(run.class_iou) for run in runs if run.class_iou is not None]
    return Entrant(
        name=name,
        is_floor=is_floor,
        scores=tuple(run.score for run in runs),
        images=torch.tensor([run.images for run in runs], dtype=torch.float64),
        seconds=tuple(run.seconds for run in runs),
        probe=None if probe is None else tuple(probe),
        pixel_accuracy=tuple(accuracies) or None,
        class_iou=tuple(by_class) or None,
        twice=mean_gain(gains) if len(gains) == len(runs) else None,
    )


def twice_the_steps(folder: Path, metric: str, images: int) -> Gain | None:
    """What a finished run's journal says of one of twice its length; `metric` and `images` as in `evaluation.longer.outlook`."""
    return outlook(read_journal(folder / "journal.jsonl"), metric, images).gain


def training_seconds(folder: Path, images: int) -> float:
    """How long a run's steps took, from its journal, whatever starts it took; `images` are in an epoch."""
    seconds, before = 0.0, 0.0
    for event in read_journal(folder / "journal.jsonl"):
        if event.kind == "train":
            seconds += (event.numbers["epoch"] - before) * images / event.numbers["images_per_second"]
            before = event.numbers["epoch"]
    return seconds
