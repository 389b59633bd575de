"""Choosing among labelled pictures: a validation part, or a few labels per class, the same way every time."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beitkit.data.files import PictureList, find_labelled, split_folders
from beitkit.errors import UserError

VAL_SHARE = 0.2
"""Share of each class that is set aside where no validation pictures are given."""


def train_and_val(images: Path, val: Path | None, seed: int) -> tuple[PictureList, PictureList]:
    """Training and validation pictures with the same classes.

    Validation pictures come from `val`, else from a val/ or test/ folder beside train/, else a fifth of each class is set
    aside, drawn by `seed`.
    """
    splits = split_folders(images)
    train = find_labelled(images, "train" if "train" in splits else None)
    if val is not None:
        return train, find_labelled(val, "val" if "val" in split_folders(val) else None, classes=train.classes)
    for split in ("val", "test"):
        if "train" in splits and split in splits:
            return train, find_labelled(images, split, classes=train.classes)
    kept, aside = _split(_labels(train), seed)
    return train.subset(kept), train.subset(aside)


def few_per_class(files: PictureList, labels: int, seed: int, option: str = "--labels") -> PictureList:
    """That many pictures, as evenly over the classes as can be, drawn by `seed`; `option` is what the user called the number.

    Raises:
        UserError: fewer labels than classes, or more than there are.
    """
    classes = len(files.classes)
    if not classes <= labels <= len(files):
        raise UserError(f"{option} {labels} must lie between the {classes} classes and the {len(files)} training pictures")
    known = _labels(files)
    shuffled = np.array(random.Random(seed).sample(range(len(files)), len(files)))
    # Position of every picture within its class, in shuffled order: taking the smallest first takes classes in turn.
    position = np.empty(len(files), dtype=np.int64)
    for label in range(classes):
        members = shuffled[known[shuffled] == label]
        position[members] = np.arange(len(members))
    order = sorted(range(len(files)), key=lambda index: (position[index], known[index]))
    return files.subset(sorted(order[:labels]))


def as_csv(files: PictureList) -> str:
    """The list as a table that `find_labelled` reads, with absolute paths."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label"])
    for index, label in enumerate(_labels(files)):
        table.writerow([files.path(index).absolute(), files.classes[label]])
    return text.getvalue()


def _split(labels: NDArray[np.int64], seed: int) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    kept: list[int] = []
    aside: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label).tolist()
        rng.shuffle(members)
        cut = max(1, round(len(members) * VAL_SHARE)) if len(members) > 1 else 0
        aside += members[:cut]
        kept += members[cut:]
    if not aside:
        raise UserError("no class has more than one picture, so none can be set aside for validation; give --val")
    return sorted(kept), sorted(aside)


def _labels(files: PictureList) -> NDArray[np.int64]:
    assert files.labels is not None
    return files.labels
