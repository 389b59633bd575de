"""Reproducible splits of labeled images: a validation set, or a few labels per class.

Images are ranked within each class by a hash of (seed, name): the same images are always split the same way, and adding or
removing an image moves hardly any other.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.data import ColumnsConfig
from beitkit.data.own.images import OwnImages
from beitkit.data.sources.find import LabeledArchives, LabeledItems, LabeledList, LabeledSource, find_labeled, labeled_source
from beitkit.data.sources.image_list import BETWEEN_BANDS, ImageList
from beitkit.data.sources.list_rows import BAND, CLASS_ROW, SEPARATOR, csv_rows
from beitkit.errors import UserError, few

VAL_SHARE = 0.2
"""Share of each class, or of the pairs of images and masks, that is set aside where no validation images are given."""


def train_and_val(
    images: Path | OwnImages,
    val: Path | OwnImages | None,
    seed: int,
    columns: ColumnsConfig = ColumnsConfig(),
    fold: tuple[int, int] | None = None,
) -> tuple[ImageList, ImageList]:
    """Training and validation images with the same classes, both with `labels` or both with `targets`.

    Validation images come from `val`; else from a val/ or test/ folder beside train/; else from the rows of a list whose
    split is val, or test; else a fifth of each class is set aside by `seed`. With a `fold` (number from 1, of how many) they are
    that fold of the training images (`fold_of`), whatever else there is.

    Raises:
        UserError: what `find_labeled` raises; a class of the validation images that the training images lack; a file
            that is in both; a list with train but neither val nor test; or nothing that can be set aside.
    """
    source = labeled_source(images, columns)
    is_divided = "train" in source.splits
    train = source.read("train" if is_divided else None)
    if fold is not None:
        if isinstance(source, LabeledList):
            _refuse_repeated(train, source)
        return _one_fold(train, seed, *fold)
    if val is not None:
        other = labeled_source(val, columns)
        aside = other.read("val" if "val" in other.splits else None, train.classes)
    elif is_divided and ("val" in source.splits or "test" in source.splits):
        other = source
        aside = source.read("val" if "val" in source.splits else "test", train.classes)
    elif is_divided and isinstance(source, LabeledList):
        raise UserError(
            f"{images} has rows whose split is 'train' but none whose split is 'val' or 'test'; add some, or give `val`"
        )
    else:
        if isinstance(source, LabeledList):
            _refuse_repeated(train, source)
        return _set_aside(train, seed)
    refuse_other_files(train, aside)
    if train.targets is not None:
        aside = aside.with_targets()
    elif aside.targets is not None:
        raise UserError(f"{val} has several labels an image, but {images} has one; write the labels of both in the same way")
    lacking = [
        name for name, there, here in zip(train.classes, train.counts(), aside.counts(), strict=True) if here and not there
    ]
    if lacking:
        raise UserError(f"the class {lacking[0]!r} has validation images but no training image; add some, or remove the class")
    _refuse_shared(train, source, aside, other)
    return train, aside


def refuse_other_files(train: ImageList, val: ImageList) -> None:
    """Raise for validation images in another number of files than the training images, whose table could not hold them.

    Raises:
        UserError: says both numbers.
    """
    if train.files_each != val.files_each:
        raise UserError(
            f"a training image consists of {train.files_each} files and a validation image of {val.files_each}; "
            "list the channels of both in the same way"
        )


def note_on_val(val: ImageList) -> str | None:
    """A line on the classes without a validation image, whose accuracy will stay unknown; None if there are none."""
    absent = [name for name, count in zip(val.classes, val.counts(), strict=True) if not count]
    if not absent:
        return None
    return f"no validation image of {len(absent)} of {len(val.classes)} classes: {few(absent, 5)}"


def few_per_class(files: ImageList, labels: int, seed: int, field: str = "labels") -> ImageList:
    """That many images, as evenly over the classes as can be, drawn by `seed`; messages call the number `field`.

    A larger number adds images to those of a smaller one. Where an image can have several labels, the next image is
    always one of the class that has fewest so far, and images without a label take turns as a class of their own.

    Raises:
        UserError: fewer labels than classes, or more than there are.
    """
    return files.subset(few_indices(files, labels, seed, field))


def few_indices(files: ImageList, labels: int, seed: int, field: str = "labels") -> NDArray[np.int64]:
    """The ascending indices of the images that `few_per_class` draws."""
    classes = len(files.classes)
    if not classes <= labels <= len(files):
        raise UserError(f"`{field}` {labels} must lie between the {classes} classes and the {len(files)} training images")
    shuffled = np.array(random.Random(seed).sample(range(len(files)), len(files)))
    if files.targets is not None:
        return np.sort(_fewest_first(files.targets[shuffled], shuffled, labels))
    known = _labels(files)
    # Position of every image within its class, in shuffled order: taking the smallest first takes classes in turn.
    order = np.lexsort((known, _position_in_class(known, shuffled)))
    return np.sort(order[:labels])


def split_table(train: ImageList, val: ImageList) -> str:
    """A CSV table that `train_and_val` reads back as these two lists: first the classes in order, then absolute paths.

    Write it as UTF-8 with `surrogateescape`, so that names keep their bytes.

    Raises:
        UserError: images can have several labels, and the name of a class has a `|` in it.
    """
    return list_table({"train": train, "val": val})


def list_table(parts: Mapping[str, ImageList]) -> str:
    """The same of lists by their split, or of one list whose split is empty; images need not have labels.

    Raises:
        UserError: as `split_table`.
    """
    lists = list(parts.values())
    is_labeled = lists[0].labels is not None or lists[0].targets is not None
    classes = dict.fromkeys(name for files in lists for name in files.classes)
    separated = next((name for name in classes if SEPARATOR in name), None)
    if any(files.targets is not None for files in lists) and separated is not None:
        raise UserError(
            f"the class {separated!r} has a {SEPARATOR} in its name, which separates labels in a CSV table; rename it"
        )
    text = io.StringIO()
    # Quotes around everything: the writer leaves a bare carriage return unquoted, which would end the row when read.
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    each = lists[0].files_each
    paths = ["path"] if each == 1 else [f"{BAND}{number + 1}" for number in range(each)]
    label = [] if not is_labeled else ["label"] if lists[0].targets is None else ["labels"]
    is_divided = is_labeled or any(parts)  # the rows of classes have a split, too
    table.writerow([*paths, *label, *["split"][:is_divided]])
    table.writerows([*[""] * len(paths), name, CLASS_ROW] for name in classes)
    for split, files in parts.items():
        cells = ([cell] for cell in _cells(files)) if is_labeled else itertools.repeat([])
        for path, cell in zip(files.paths(), cells):  # noqa: B905 - as many cells as paths, or endlessly many
            table.writerow([*map(os.fsdecode, path.split(BETWEEN_BANDS)), *cell, *[split][:is_divided]])
    return text.getvalue()


def set_aside_before(table: Path, source: LabeledSource, classes: Sequence[str]) -> ImageList:
    """The validation images of a `split_table`; those of archives and datasets are looked up there, as a list names files only.

    Raises:
        UserError: the table cannot be read, or names images that are no longer there.
    """
    if not isinstance(source, LabeledArchives | LabeledItems):
        return find_labeled(table, "val", classes=classes)
    named = {os.fsencode(row.name) for row in csv_rows(table, labeled=True) if row.split == "val"}
    files = source.read(None, classes)
    chosen = [index for index, path in enumerate(files.paths()) if path in named]
    if len(chosen) != len(named):
        raise UserError(f"{table} names {len(named)} images for validation, but {source.path} holds {len(chosen)} of them")
    return files.subset(chosen)


def _cells(files: ImageList) -> Iterator[str]:
    """The labels of each image as one cell of a table."""
    if files.targets is None:
        return (files.classes[label] for label in _labels(files))
    return (SEPARATOR.join(files.classes[label] for label in np.flatnonzero(row)) for row in files.targets)


def _labels(files: ImageList) -> NDArray[np.int64]:
    assert files.labels is not None
    return files.labels


def _position_in_class(labels: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images of its own class come before each image in `order`."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    first = np.searchsorted(labels[by_class], labels[by_class])
    position = np.empty(len(labels), dtype=np.int64)
    position[by_class] = np.arange(len(labels)) - first
    return position


def _fewest_first(targets: NDArray[np.bool_], images: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """That many of `images`, whose targets are given in the same order, each of the class with fewest so far."""
    columns = np.column_stack([targets, ~targets.any(axis=1)])
    waiting = [iter(np.flatnonzero(column)) for column in columns.T]
    have = np.zeros(len(waiting))
    is_chosen = np.zeros(len(images), dtype=np.bool_)
    for _ in range(number):
        place = None
        while place is None:
            label = int(have.argmin())
            place = next((place for place in waiting[label] if not is_chosen[place]), None)
            if place is None:
                have[label] = np.inf
        is_chosen[place] = True
        have[columns[place]] += 1
    return images[is_chosen]


def _set_aside(files: ImageList, seed: int) -> tuple[ImageList, ImageList]:
    """Training and validation part, `VAL_SHARE` of each class in the second; a class's only image is trained on."""
    order, counts = _hashed_order(files, seed), files.counts()
    wanted = np.where(counts > 1, np.maximum(1, np.rint(counts * VAL_SHARE)), 0).astype(np.int64)
    if files.targets is not None:
        is_aside = _rarest_first(files.targets, order, wanted)
    else:
        labels = _labels(files)
        is_aside = _position_in_class(labels, order) < wanted[labels]
    if not is_aside.any():
        raise UserError("no class has more than one image, so none can be set aside for validation; give `val`")
    return files.subset(np.flatnonzero(~is_aside)), files.subset(np.flatnonzero(is_aside))


def _hashed_order(files: ImageList, seed: int) -> NDArray[np.int64]:
    """The images by a hash of seed and name."""
    key = str(seed).encode()
    hashes = (hashlib.blake2b(files.name(index), digest_size=8, key=key).digest() for index in range(len(files)))
    return np.argsort(np.frombuffer(b"".join(hashes), dtype="<u8"), kind="stable")


def fold_of(files: ImageList, seed: int, folds: int) -> NDArray[np.int64]:
    """For each image the fold, from 0, that validates on it; -1 for those that are trained on in every fold.

    Every class is spread evenly: its numbers of images in two folds differ by at most one, and so do the sizes of the folds.
    Where images have several labels, that is not always possible, and iterative stratification comes near (Sechidis et al. 2011).
    The only image of a class is in no fold, so that no network is asked for what it never saw.
    """
    order, counts = _hashed_order(files, seed), files.counts()
    if files.targets is not None:
        return _stratified(files.targets, order, folds)
    labels = _labels(files)
    shared = order[counts[labels[order]] > 1]
    by_class = shared[np.argsort(labels[shared], kind="stable")]
    found = np.full(len(files), -1)
    found[by_class] = np.arange(len(by_class)) % folds
    return found


def _one_fold(files: ImageList, seed: int, number: int, folds: int) -> tuple[ImageList, ImageList]:
    is_aside = fold_of(files, seed, folds) == number - 1
    if not is_aside.any():
        raise UserError(f"fold {number} of {folds} would have no image to validate on, of {len(files)}; give fewer `folds`")
    return files.subset(np.flatnonzero(~is_aside)), files.subset(np.flatnonzero(is_aside))


def _stratified(targets: NDArray[np.bool_], order: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """The fold of each image: those of the class with fewest left first, each to the fold that lacks most of the class."""
    found = np.full(len(targets), -1)
    left = np.ones(len(targets), dtype=np.bool_)
    lacking = np.tile(targets.sum(axis=0) / folds, (folds, 1))
    room = np.full(folds, len(targets) / folds)

    def place(images: NDArray[np.int64], need: NDArray[np.float64]) -> None:
        for image in images:
            chosen = int(np.lexsort((-room, -need))[0])
            found[image] = chosen
            lacking[chosen, targets[image]] -= 1
            room[chosen] -= 1
        left[images] = False

    while (remaining := targets[left].sum(axis=0)).any():
        label = int(np.where(remaining > 0, remaining, len(targets) + 1).argmin())
        place(order[targets[order, label] & left[order]], lacking[:, label])
    place(order[left[order]], room)
    for label in range(targets.shape[1]):
        members = order[targets[order, label]]
        if len(members) and (found[members] == found[members[0]]).all():
            found[members[0]] = -1
    return found


def _rarest_first(targets: NDArray[np.bool_], order: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images are set aside so that each class gets near to the number wanted, in the given order of preference.

    The rarest class chooses first, among the images that no rarer class decided on (iterative stratification, Sechidis et
    al. 2011). No image is taken that is the last one for training of any of its classes.
    """
    is_aside = np.zeros(len(targets), dtype=np.bool_)
    is_decided = np.zeros(len(targets), dtype=np.bool_)
    left = targets.sum(axis=0)
    for label in np.argsort(left, kind="stable"):
        members = order[targets[order, label] & ~is_decided[order]]
        missing = wanted[label] - np.count_nonzero(targets[:, label] & is_aside)
        for image in members:
            if missing <= 0:
                break
            if left[targets[image]].min() > 1:
                is_aside[image] = True
                left -= targets[image]
                missing -= 1
        is_decided[members] = True
    without = order[~targets[order].any(axis=1)]
    is_aside[without[: round(len(without) * VAL_SHARE)]] = True
    return is_aside


def _refuse_repeated(files: ImageList, source: LabeledList) -> None:
    """Raise if a file is listed twice: the two rows could end up on both sides."""
    keys, counts = np.unique(_keys(files), return_counts=True)
    suspects = set(keys[counts > 1].tolist())
    seen: set[bytes] = set()
    for path in _normalized(files):
        if hash(path) in suspects:
            if path in seen:
                raise UserError(
                    f"{_lines(source, path)}: {os.fsdecode(path)!r} is listed more than once, so it could be both trained on and "
                    "validated on; keep one of them"
                )
            seen.add(path)


def _refuse_shared(train: ImageList, source: LabeledSource, val: ImageList, other: LabeledSource) -> None:
    """Raise if a file is in both lists; of datasets only whether they are one and the same."""
    if isinstance(source, LabeledItems) and isinstance(other, LabeledItems):
        if source.items.dataset is other.items.dataset:
            raise UserError(f"{source.path} is given for training and for validation; give two datasets, or leave `val` out")
        return
    suspects = set(np.intersect1d(_keys(train), _keys(val)).tolist())
    if not suspects:
        return
    trained_on = {path for path in _normalized(train) if hash(path) in suspects}
    shared = next((path for path in _normalized(val) if path in trained_on), None)
    if shared is None:
        return
    shown = repr(os.fsdecode(shared))
    if source is other and isinstance(source, LabeledList):
        raise UserError(f"{_lines(source, shared)}: {shown} is listed for training and for validation; keep one of them")
    places = [_lines(one, shared) if isinstance(one, LabeledList) else str(one.path) for one in (source, other)]
    raise UserError(f"{shown} is a training image ({places[0]}) and a validation image ({places[1]}); keep one of them")


def _normalized(files: ImageList) -> Iterator[bytes]:
    return (os.path.normpath(path) for path in files.paths())


def _keys(files: ImageList) -> NDArray[np.int64]:
    """A number per file that is the same for the same path, in place of a set of paths, which would be large."""
    return np.fromiter((hash(path) for path in _normalized(files)), dtype=np.int64, count=len(files))


def _lines(source: LabeledList, path: bytes) -> str:
    lines = source.lines(path)
    return f"{source.table.path}, line{'s' if len(lines) > 1 else ''} {' and '.join(map(str, lines))}"
