"""Find images in a folder, class folders, a list of files, archives or an index, as an `ImageList`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.data import ColumnsConfig
from beitkit.data.decoding.formats import ALL_EXTENSIONS
from beitkit.data.own.images import OwnImages
from beitkit.data.sources.archives import Archives, archive_images, archives_at, class_order
from beitkit.data.sources.folders import described_ending, entries_of, in_words, is_folder, is_image, say_left_out, walk
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.index import ENDING, archives_in, open_index
from beitkit.data.sources.list_rows import as_text, names_labels
from beitkit.data.sources.lists import SPLIT_NAMES, ListTable, Split, read_list
from beitkit.data.sources.locations import location
from beitkit.errors import UserError, refuse_given

METADATA = ("metadata.csv", "metadata.jsonl")
"""The list that lies beside the images of a folder of Hugging Face's datasets."""


def find_images(path: Path | str | OwnImages, column: str | None = None) -> ImageList:
    """All images of a folder (nested too, sorted by name), a list (`data.sources.lists`), archives or an index; no labels.

    Or those of a dataset that a caller of the Python functions gave.

    Hidden files and folders are skipped; links are followed, but no folder is entered twice. `column` names that of the images,
    in a table or in Parquet files; without it usual names and types tell.

    Raises:
        UserError: nothing at the path, no images there, a row of a list that names no file (with its line number), or an
            archive or index that cannot be read.
    """
    if isinstance(path, OwnImages):
        return ImageList.of_items(path)
    path = Path(path)
    refuse_given(path)
    packed = packed_at(path)
    if packed is not None:
        if isinstance(packed, str):
            return open_index(packed, labeled=False)
        return archive_images(packed, labeled=False, columns=ColumnsConfig(image=column))
    if _exists_as_folder(path):
        left_out: Counter[str] = Counter()
        names = sorted(walk(path, left_out))
        if not names:
            others = f"; left out: {in_words(left_out)}" if left_out else ""
            raise UserError(f"{path} holds no images (files that end in .jpg, .png, .webp, .tif and so on){others}")
        say_left_out(path, left_out)
        return ImageList.of(path, names)
    table = read_list(path, labeled=False, columns=ColumnsConfig(image=column))
    return ImageList(path.parent, table.names, table.offsets)


def find_labeled(
    path: Path | str,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
    columns: ColumnsConfig = ColumnsConfig(),
) -> ImageList:
    """Labeled images: one folder per class, or a CSV or JSON lines list with labels.

    Classes are those that a list declares, else all that occur, sorted by name (by number if all are numbers). With `split`,
    class folders are looked for in `train/`, `val/` or `test/` (`training/` and so on work too) under the path, and rows of
    a list by their `split`. With `classes`, labels are indices into these: pass the training images' classes when reading
    the validation images. `columns` says which columns of a table hold what. In a folder `metadata.csv` or `metadata.jsonl` is
    such a list.

    Raises:
        UserError: missing or empty path, no class folders, an empty class, images beside the class folders, fewer than
            two classes, a class that is not in `classes`, or an unreadable row of a list.
    """
    return labeled_source(path, columns).read(split, classes)


def labeled_source(path: Path | str | OwnImages, columns: ColumnsConfig = ColumnsConfig()) -> LabeledSource:
    """Where labeled images are read from; a list's rows are read and checked here, once for all its splits.

    Raises:
        UserError: nothing at the path, or an unreadable row of a list.
    """
    if isinstance(path, OwnImages):
        return LabeledItems(path)
    path = Path(path)
    refuse_given(path)
    packed = packed_at(path)
    if packed is not None:
        return LabeledArchives(path, packed, columns)
    if not _exists_as_folder(path):
        return LabeledList(read_list(path, labeled=True, columns=columns))
    beside = _metadata(path, columns)
    return LabeledFolder(path, columns) if beside is None else LabeledList(read_list(beside, labeled=True, columns=columns))


class LabeledFolder:
    """Class folders or a list, directly in a folder or in one of its splits."""

    def __init__(self, path: Path, columns: ColumnsConfig = ColumnsConfig()) -> None:
        self.path, self.columns = path, columns

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have a folder."""
        return tuple(split_folders(self.path))

    def read(self, split: Split | None, classes: Sequence[str] | None = None) -> ImageList:
        """The images of a split, or of a folder that is not divided; see `find_labeled`."""
        folder = _split_folder(self.path, split)
        packed = packed_at(folder)
        if packed is not None:
            return LabeledArchives(folder, packed, self.columns).read(None, classes)
        beside = _metadata(folder, self.columns)
        if beside is not None:
            return LabeledList(read_list(beside, labeled=True, columns=self.columns)).read(None, classes)
        return _class_folders(folder, classes)


class LabeledArchives:
    """Archives with labels, perhaps named after splits, or an index that holds labels."""

    def __init__(self, path: Path, packed: str | Archives, columns: ColumnsConfig = ColumnsConfig()) -> None:
        self.path, self.packed, self.columns = path, packed, columns

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that archives are named after."""
        return () if isinstance(self.packed, str) else self.packed.splits

    def read(self, split: Split | None, classes: Sequence[str] | None = None) -> ImageList:
        """The images of a split, or of archives that are not divided; see `find_labeled`."""
        if isinstance(self.packed, Archives):
            files = archive_images(self.packed.of_split(split), labeled=True, columns=self.columns)
        elif split is not None:
            raise UserError(f"{self.path} is an index and has no split {split!r}; give an index for each split")
        else:
            files = open_index(self.packed, labeled=True)
        assert files.labels is not None
        if classes is None:
            _at_least_two(files.classes, self.path)
            return files
        index = {name: label for label, name in enumerate(classes)}
        known = np.array([index.get(name, -1) for name in files.classes], dtype=np.int64)[files.labels]
        if (known < 0).any():
            place = int((known < 0).argmax())
            label = files.classes[files.labels[place]]
            raise UserError(f"{files.path(place)}: label {label!r} is not one of the {_counted(classes)}")
        return replace(files, labels=known, classes=tuple(classes), known_digest=None)


class LabeledList:
    """The rows of a list with labels, and perhaps splits."""

    def __init__(self, table: ListTable) -> None:
        self.table = table

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have rows."""
        return self.table.splits

    def read(self, split: Split | None, classes: Sequence[str] | None = None) -> ImageList:
        """The images of a split, or of a list that is not divided; see `find_labeled`."""
        table = self.table
        chosen = self._rows(split)
        is_chosen = np.zeros(len(table.lines), dtype=np.bool_)
        is_chosen[chosen] = True
        row_of_label = np.repeat(np.arange(len(table.lines)), np.diff(table.label_offsets))
        used = is_chosen[row_of_label]
        if classes is None:
            occurring = sorted((table.labels[label] for label in np.unique(table.label_ids[used])), key=class_order)
            classes = table.declared or occurring
            _at_least_two(classes, table.path)
        index = {name: label for label, name in enumerate(classes)}
        known = np.array([index.get(name, -1) for name in table.labels], dtype=np.int64)[table.label_ids]
        unknown = np.flatnonzero(used & (known < 0))
        if len(unknown):
            line, label = table.lines[row_of_label[unknown[0]]], table.labels[table.label_ids[unknown[0]]]
            raise UserError(f"{table.path}, line {line}: label {label!r} is not one of the {_counted(classes)}")
        files = ImageList(table.path.parent, table.names, table.offsets, classes=tuple(classes))
        if table.has_several:
            targets = np.zeros((len(files), len(classes)), dtype=np.bool_)
            targets[row_of_label[used], known[used]] = True
            files = replace(files, targets=targets)
        else:
            files = replace(files, labels=known)
        return files if len(chosen) == len(files) else files.subset(chosen)

    def lines(self, path: bytes) -> list[int]:
        """The lines that name this file (absolute and normalized)."""
        files = ImageList(self.table.path.parent, self.table.names, self.table.offsets)
        return [int(self.table.lines[row]) for row, other in enumerate(files.paths()) if os.path.normpath(other) == path]

    def _rows(self, split: Split | None) -> NDArray[np.int64]:
        path, splits = self.table.path, self.splits
        if split is None:
            if splits:
                raise UserError(f"{path} is divided into {', '.join(splits)} by its column split; one of them has to be chosen")
            return np.arange(len(self.table.lines))
        if not splits:
            raise UserError(f"{path} is a list and has no split {split!r}; give it a column split, or give one list per split")
        if split not in splits:
            raise UserError(f"{path} has no images whose split is {split!r}; it has {', '.join(splits)}")
        return self.table.rows_of(split)


class LabeledItems:
    """The items of a dataset that a caller gave."""

    splits: tuple[Split, ...] = ()

    def __init__(self, items: OwnImages) -> None:
        self.items, self.path = items, Path(items.description)

    def read(self, split: Split | None, classes: Sequence[str] | None = None) -> ImageList:
        """All of them; see `find_labeled`. Classes are the dataset's own (`classes`), else the labels that occur.

        Raises:
            UserError: fewer than two classes, a label without a class, or what `OwnImages.labels` raises.
        """
        if split is not None:
            raise UserError(f"{self.path} has no split {split!r}; give a dataset for each split")
        own, labels = self.items.classes, self.items.labels()
        named = [own[label] if own and isinstance(label, int) and 0 <= label < len(own) else str(label) for label in labels]
        if classes is None:
            classes = own or sorted(set(named), key=class_order)
            _at_least_two(classes, self.path)
        index = {name: place for place, name in enumerate(classes)}
        known = np.array([index.get(name, -1) for name in named], dtype=np.int64)
        if (known < 0).any():
            place = int((known < 0).argmax())
            raise UserError(f"{self.items.path(place)}: label {labels[place]!r} is not one of the {_counted(classes)}")
        return replace(ImageList.of_items(self.items), labels=known, classes=tuple(classes))


LabeledSource = LabeledFolder | LabeledArchives | LabeledList | LabeledItems


def split_folders(path: Path | str) -> Mapping[Split, Path]:
    """Which splits a folder has: `train`, `val`, `test` and the folder of each; empty when the classes lie directly in it."""
    path = Path(path)
    if not path.is_dir():
        return {}
    folders: dict[Split, Path] = {}
    for split, names in SPLIT_NAMES.items():
        found = next((path / name for name in names if (path / name).is_dir()), None)
        if found is not None:
            folders[split] = found
    return folders


def packed_at(path: Path | str) -> str | Archives | None:
    """The index that a path or URL names, or that lies beside the archives it names; else these archives; None without either.

    Raises:
        UserError: the index beside archives lists others than lie there; or as `archives_at`.
    """
    text = location(path)
    if text.endswith(ENDING):
        return text
    archives = archives_at(path)
    if archives is None or archives.listed_in is None:
        return archives
    if set(archives.places) != set(archives_in(archives.listed_in)):
        raise UserError(f"{archives.listed_in} lists other archives than lie beside it; make the index again, or remove it")
    return archives.listed_in


def _metadata(folder: Path, columns: ColumnsConfig) -> Path | None:
    """The list beside the images of a folder; None where there is none, or where its images lie in class folders.

    Raises:
        UserError: there are two such lists; or class folders, too, and labels in both.
    """
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"{folder} holds {METADATA[0]} and {METADATA[1]}; move one of them away")
    splits = split_folders(folder)
    if "train" in splits or len(splits) > 1:
        if names_labels(found[0], columns):
            raise UserError(
                f"{found[0]} has labels and lies beside {', '.join(f'{one.name}/' for one in splits.values())}; put a list into "
                f"each of these folders, or give {found[0]} itself"
            )
        return None
    entries = list(entries_of(os.fsencode(folder)))
    has_class_folders = sum(is_folder(entry) for entry in entries) > 1 and not any(map(is_image, entries))
    if not has_class_folders:
        return found[0]
    if names_labels(found[0], columns):
        raise UserError(
            f"{folder} holds class folders and also labels in {found[0].name}; give {found[0]}, or move it away to use the "
            "folders"
        )
    return None


def _exists_as_folder(path: Path) -> bool:
    if path.is_dir():
        return True
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder of images, or a list (.txt, .csv, .jsonl)")
    if not path.is_file():
        raise UserError(f"{path} is neither a folder nor a regular file; give a folder of images, or a list (.txt, .csv, .jsonl)")
    if path.suffix.lower() in ALL_EXTENSIONS:
        raise UserError(f"{path} is one image; give the folder it is in, or a list")
    return False


def _split_folder(path: Path, split: Split | None) -> Path:
    folders = split_folders(path)
    if split is not None:
        if split not in folders:
            has = f"it has {', '.join(folders)}" if folders else f"expected {path / SPLIT_NAMES[split][0]}"
            raise UserError(f"{path} has no split {split!r}; {has}")
        return folders[split]
    # A class may well be called `test`; two of these names side by side, or a train folder, are no classes.
    if "train" in folders or len(folders) > 1:
        raise UserError(
            f"{path} is divided into {', '.join(folders)}; choose one of them, such as {next(iter(folders.values()))}"
        )
    return path


def _class_folders(path: Path, classes: Sequence[str] | None) -> ImageList:
    entries = sorted(entries_of(os.fsencode(path)), key=lambda entry: entry.name)
    folders = {as_text(os.fsdecode(entry.name)): entry.name for entry in entries if is_folder(entry)}
    found = sorted(folders, key=class_order)
    if len(found) < sum(is_folder(entry) for entry in entries):
        raise UserError(f"{path} holds two class folders whose names differ only in how they are encoded; rename one")
    stray = next((entry.name for entry in entries if is_image(entry)), None)
    if not found:
        what = "images but no class folders" if stray else "neither images nor class folders"
        raise UserError(f"{path} holds {what}; expected one folder per class, or a .csv or .jsonl list with path and label")
    if stray is not None:
        raise UserError(f"{path / os.fsdecode(stray)} lies beside the class folders; move it into one of them")
    if classes is None:
        _at_least_two(found, path)
        classes = found
    index = {name: label for label, name in enumerate(classes)}
    left_out = Counter(described_ending(entry.name) for entry in entries if not is_folder(entry))
    names: list[bytes] = []
    labels: list[int] = []
    for name in found:
        if name not in index:
            raise UserError(f"{path / name} is a class that is not one of the {_counted(classes)}; rename or remove it")
        others: Counter[str] = Counter()
        inside = sorted(walk(path / os.fsdecode(folders[name]), others))
        if not inside:
            what = f" (left out: {in_words(others)})" if others else ""
            raise UserError(f"the class folder {path / name} holds no images{what}; fill or remove it")
        left_out += others
        names.extend(folders[name] + b"/" + image for image in inside)
        labels.extend([index[name]] * len(inside))
    say_left_out(path, left_out)
    return ImageList.of(path, names, classes=classes, labels=np.array(labels, dtype=np.int64))


def _at_least_two(classes: Sequence[str], path: Path) -> None:
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no label"
        raise UserError(f"{path} has {found}; a classifier needs two or more classes")


def _counted(classes: Sequence[str]) -> str:
    """How many known classes there are, and some of them."""
    some = ", ".join(repr(name) for name in classes[:5])
    return f"{len(classes)} known classes ({some}{', ...' if len(classes) > 5 else ''})"
