"""Pairing of images and masks by the names of folders and files; no image is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from beitkit.configs.data import ColumnsConfig
from beitkit.data.own.images import OwnImages
from beitkit.data.scenes.packed import packed_pairs, packed_splits
from beitkit.data.scenes.pairing import IMAGE_FOLDERS, MASK_FOLDERS, Pairs, Side, named, paired
from beitkit.data.sources.archives import Archives
from beitkit.data.sources.find import find_images, packed_at, split_folders
from beitkit.data.sources.image_list import BETWEEN_BANDS, ImageList
from beitkit.data.sources.list_rows import band_columns, csv_cells, known_column
from beitkit.data.sources.lists import TABLES, Split
from beitkit.errors import UserError, refuse_given
from beitkit.files import read_text, why

VOC_LISTS = Path("ImageSets", "Segmentation")
COLUMNS = ("image", "mask", "split")
IMAGE_COLUMNS = ("image", "img", "image_path", "file_name", "filename")
"""Names of the column of images in a table of pairs, upper or lower case; that of masks is called as their folder."""


def scene_splits(path: Path | OwnImages, columns: ColumnsConfig = ColumnsConfig()) -> tuple[Split, ...]:
    """The splits that a data set or a table is divided into; none where it is not, or is not there, or a caller's object."""
    if isinstance(path, OwnImages):
        return ()
    refuse_given(path)
    packed = _packed(path)
    if packed is not None:
        return packed_splits(path, packed)
    if not path.exists():
        return ()
    if path.is_file():
        return tuple(split for split in get_args(Split) if any(row.split == split for row in _rows(path, columns)))
    sides = _sides(path)
    if sides is None:
        return tuple(split for split, folder in split_folders(path).items() if _sides(folder) is not None)
    return tuple(_voc_lists(path, sides)) or tuple(_side_splits(sides))


def looks_like_scenes(path: Path) -> bool:
    """Whether a folder, or a table, holds images with masks rather than images with labels; nothing of it is read in full.

    Archives are not looked into, and a table must call its masks something that cannot mean labels.
    """
    if path.is_dir():
        return _sides(path) is not None or any(_sides(folder) is not None for folder in split_folders(path).values())
    if not path.is_file() or path.suffix.lower() not in TABLES:
        return False
    _, names = next(csv_cells(path), (0, []))
    return known_column(names, [name for name in MASK_FOLDERS if not name.startswith("label")]) is not None


def locate_scenes(path: Path, split: Split | None, columns: ColumnsConfig = ColumnsConfig()) -> Pairs:
    """The pairs of a folder, table, archives or index, of one split where it is divided.

    `columns` names the columns of images and, under `label`, of masks, in a table or in Parquet files.

    Raises:
        UserError: nothing there, an unknown layout, a split that is missing or has to be chosen, names that do not pair.
    """
    if columns.separator is not None or len(columns.label or "_") != 1:
        raise UserError("of masks `columns.label` names one column, and `columns.separator` has no meaning; leave it out")
    packed = _packed(path)
    if packed is not None:
        return packed_pairs(path, packed, split, columns)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder with images/ and masks/ in it, or a table of pairs")
    splits = scene_splits(path, columns)
    if split is not None and split not in splits:
        has = f"it has {', '.join(splits)}" if splits else "it is not divided"
        raise UserError(f"{path} has no split {split!r}; {has}")
    if path.is_file():
        return _table(path, split, columns)
    if columns != ColumnsConfig():
        raise UserError(f"`columns` names columns of a table or of Parquet files, but {path} is a folder; leave it out")
    if split is None and splits:
        raise UserError(f"{path} is divided into {', '.join(splits)}; choose one of these splits")
    sides = _sides(path)
    if sides is None:
        if split is None:
            raise UserError(f"{path} holds no images with masks; expected two folders in it, such as images/ and masks/")
        return _folders(_sides(split_folders(path)[split]))
    lists = _voc_lists(path, sides)
    if split is None:
        return _folders(sides)
    return _listed_in(lists[split], sides) if lists else _folders(_side_splits(sides)[split])


def _packed(path: Path) -> str | Archives | None:
    """The archives or the index of a path; a folder of images and masks may have archives lying about."""
    if path.is_dir() and (_sides(path) is not None or any(map(_sides, split_folders(path).values()))):
        return None
    return packed_at(path)


class _Sides(NamedTuple):
    """The folder of the images and the one of the masks."""

    images: Path
    masks: Path


def _sides(path: Path) -> _Sides | None:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    images, masks = _named(folders, IMAGE_FOLDERS), _named(folders, MASK_FOLDERS)
    # Pascal VOC has Annotations/ too, the boxes of its objects; Cityscapes may lie there with its coarse masks beside the fine.
    masks = [folder for folder in masks if folder.name in ("SegmentationClass", "gtFine")] or masks
    if not images or not masks:
        return None
    for found in (images, masks):
        if len(found) > 1:
            names = " and ".join(f"{folder.name}/" for folder in found)
            raise UserError(f"{path} holds {names}, any of which could be meant; keep one, or give a table of pairs")
    return _Sides(images[0], masks[0])


def _named(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    return [folder for folder in folders if folder.name.lower() in names]


def _side_splits(sides: _Sides) -> Mapping[Split, _Sides]:
    images, masks = split_folders(sides.images), split_folders(sides.masks)
    return {split: _Sides(images[split], masks[split]) for split in images if split in masks}


def _voc_lists(path: Path, sides: _Sides) -> Mapping[Split, Path]:
    if sides.masks.name != "SegmentationClass":
        return {}
    names = {split: path / VOC_LISTS / f"{split}.txt" for split in get_args(Split)}
    # VOC's test images have no published masks, so that list leads nowhere.
    return {split: file for split, file in names.items() if file.is_file() and split != "test"}


def _folders(sides: _Sides | None) -> Pairs:
    """The pairs of two folders, by name."""
    assert sides is not None
    images, masks = (Side.of(folder.name, str(folder), find_images(folder)) for folder in sides)
    return paired(images, masks)


def _names_in(file: Path) -> list[str]:
    try:
        return read_text(file, encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a list of names: {why(error)}") from None


def _listed_in(file: Path, sides: _Sides) -> Pairs:
    """The pairs that one of VOC's lists names, one stem a line."""
    images, masks = find_images(sides.images), find_images(sides.masks)
    places = [{named(files, index): index for index in range(len(files))} for files in (images, masks)]
    chosen: list[tuple[int, int]] = []
    for line, text in enumerate(_names_in(file), start=1):
        if not (name := text.strip()):
            continue
        for folder, place in zip(sides, places, strict=True):
            if name not in place:
                raise UserError(f"{file}, line {line}: {folder} has no image {name!r}")
        chosen.append((places[0][name], places[1][name]))
    if not chosen:
        raise UserError(f"{file} lists no images")
    first, second = zip(*chosen, strict=True)
    return Pairs(images.subset(first), masks.subset(second), "voc")


class _Row(NamedTuple):
    """A line of a table."""

    line: int
    images: tuple[str, ...]
    """The image's file, or its files where each holds one of its channels."""
    mask: str
    split: str


def _table(path: Path, split: Split | None, columns: ColumnsConfig) -> Pairs:
    rows = [row for row in _rows(path, columns) if split is None or row.split == split]
    for row in rows:
        for name in (*row.images, row.mask):
            if not (path.parent / name).is_file():
                raise UserError(f"{path}, line {row.line}: there is no file {name!r} (paths are relative to the table's folder)")
    if not rows:
        raise UserError(f"{path} lists no pairs")
    images = ImageList.of(path.parent, [BETWEEN_BANDS.join(map(os.fsencode, row.images)) for row in rows])
    masks = ImageList.of(path.parent, [os.fsencode(row.mask) for row in rows])
    return Pairs(images, masks, "table")


def _rows(path: Path, columns: ColumnsConfig) -> Iterator[_Row]:
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path} is neither a folder nor a .csv table with the columns image and mask")
    lines = csv_cells(path)
    _, names = next(lines)
    image = columns.image or known_column(names, IMAGE_COLUMNS)
    image_columns = band_columns(names) if image is None else (image,)
    mask = columns.label[0] if columns.label is not None else known_column(names, MASK_FOLDERS)
    if not image_columns or image_columns[0] not in names or mask not in names:
        given = "" if columns == ColumnsConfig() else " (`columns` says which)"
        found = ", ".join(names) or "nothing"
        raise UserError(f"{path}: the first line must name the columns image and mask{given}; found {found}")
    for line, cells in lines:
        row = dict(zip(names, cells, strict=True))
        split = row.get("split", "").strip()
        if split and split not in get_args(Split):
            raise UserError(f"{path}, line {line}: the split is {split!r}, expected train, val or test")
        images = tuple(_spelled(path, row[column].strip()) for column in image_columns)
        yield _Row(line, images, _spelled(path, row[mask].strip()), split)


def _spelled(table: Path, name: str) -> str:
    """The name of a file in a table; with slashes for the backslashes of Windows where it has none of that name."""
    return name if "\\" not in name or (table.parent / name).is_file() else name.replace("\\", "/")
