"""Pairing of images and masks by the names of folders and files; no image is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from beitkit.data.sources.find import find_images, split_folders
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.list_rows import csv_cells
from beitkit.data.sources.lists import Split
from beitkit.errors import UserError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "pictures", "photos")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass", "segmentationclassraw"),
    *("gtfine", "gt", "segmentations", "segmentation"),
)
# What the name of a file may have after the part that image and mask share; longer ones first.
IMAGE_ENDINGS = ("_leftImg8bit", "_image", "_img", "_sat")
MASK_ENDINGS = (
    *("_gtFine_labelTrainIds", "_gtFine_labelIds", "_labelTrainIds", "_labelIds", "_segmentation", "_annotation", "_labels"),
    *("_label", "_masks", "_mask", "-mask", "_seg", "_gt", "_L"),
)
VOC_LISTS = Path("ImageSets", "Segmentation")
COLUMNS = ("image", "mask", "split")

SceneLayout = Literal["folders", "voc", "ade20k", "table"]


class Pairs(NamedTuple):
    """Images and masks in the same order, and what has no partner."""

    images: ImageList
    masks: ImageList
    layout: SceneLayout
    images_without_mask: tuple[Path, ...] = ()
    masks_without_image: tuple[Path, ...] = ()


def scene_splits(path: Path) -> tuple[Split, ...]:
    """The splits that a data set or a table is divided into; none where it is not."""
    if path.is_file():
        return tuple(split for split in get_args(Split) if any(row.split == split for row in _rows(path)))
    sides = _sides(path)
    if sides is None:
        return tuple(split for split, folder in split_folders(path).items() if _sides(folder) is not None)
    return tuple(_voc_lists(path, sides)) or tuple(_side_splits(sides))


def locate_scenes(path: Path, split: Split | None) -> Pairs:
    """The pairs of a folder or table, of one split where it is divided.

    Raises:
        UserError: nothing there, an unknown layout, a split that is missing or has to be chosen, names that do not pair.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder with images/ and masks/ in it, or a table of pairs")
    splits = scene_splits(path)
    if split is not None and split not in splits:
        has = f"it has {', '.join(splits)}" if splits else "it is not divided"
        raise UserError(f"{path} has no split {split!r}; {has}")
    if path.is_file():
        return _table(path, split)
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


class _Sides(NamedTuple):
    """The folder of the images and the one of the masks."""

    images: Path
    masks: Path


def _sides(path: Path) -> _Sides | None:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    images, masks = _named(folders, IMAGE_FOLDERS), _named(folders, MASK_FOLDERS)
    # Pascal VOC has Annotations/ too, the boxes of its objects.
    masks = [folder for folder in masks if folder.name == "SegmentationClass"] or masks
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
    images, masks = find_images(sides.images), find_images(sides.masks)
    partners = _partners(images, masks)
    paired = sorted((image, mask) for mask, image in partners.items())
    without_mask = sorted(set(range(len(images))) - set(partners.values()))
    without_image = [mask for mask in range(len(masks)) if mask not in partners]
    if 2 * len(paired) < min(len(images), len(masks)):
        lonely = masks.path(without_image[0])
        raise UserError(
            f"only {len(paired)} of {len(masks)} masks in {sides.masks} have an image of the same name in {sides.images}: "
            f"none belongs to {lonely.name}; name each mask as its image ({images.path(0).stem}.png, say), or give a table"
        )
    is_ade = all(images.path(index).name.startswith("ADE_") for index, _ in paired)
    is_voc = sides.masks.name == "SegmentationClass" and sides.images.name == "JPEGImages"
    return Pairs(
        images.subset([image for image, _ in paired]),
        masks.subset([mask for _, mask in paired]),
        "ade20k" if is_ade else "voc" if is_voc else "folders",
        tuple(images.path(index) for index in without_mask),
        tuple(masks.path(index) for index in without_image),
    )


def _partners(images: ImageList, masks: ImageList) -> dict[int, int]:
    """The image of each mask that has one."""
    known: dict[str, list[int]] = {}
    for index in range(len(images)):
        name = _stem(images, index)
        for key in {name, _without(name, IMAGE_ENDINGS)}:
            known.setdefault(key, []).append(index)
    partners: dict[int, int] = {}
    taken: dict[int, int] = {}
    for mask in range(len(masks)):
        name = _stem(masks, mask)
        found = known.get(name) or known.get(_without(name, MASK_ENDINGS)) or []
        if len(found) > 1:
            first, second = (images.path(index) for index in found[:2])
            raise UserError(
                f"{masks.path(mask)} could belong to {first.name} and to {second.name}; rename one, or give a table of pairs"
            )
        if not found:
            continue
        if found[0] in taken:
            other = masks.path(taken[found[0]])
            raise UserError(
                f"{other} and {masks.path(mask).name} both belong to the image {images.path(found[0]).name}; "
                "move one of them elsewhere, or give a table of pairs"
            )
        taken[found[0]] = mask
        partners[mask] = found[0]
    return partners


def _stem(files: ImageList, index: int) -> str:
    return files.path(index).relative_to(files.root).with_suffix("").as_posix()


def _without(name: str, endings: Sequence[str]) -> str:
    return next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), name)


def _listed_in(file: Path, sides: _Sides) -> Pairs:
    """The pairs that one of VOC's lists names, one stem a line."""
    images, masks = find_images(sides.images), find_images(sides.masks)
    places = [{_stem(files, index): index for index in range(len(files))} for files in (images, masks)]
    chosen: list[tuple[int, int]] = []
    for line, text in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
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
    image: str
    mask: str
    split: str


def _table(path: Path, split: Split | None) -> Pairs:
    rows = [row for row in _rows(path) if split is None or row.split == split]
    for row in rows:
        for name in (row.image, row.mask):
            if not (path.parent / name).is_file():
                raise UserError(f"{path}, line {row.line}: there is no file {name!r} (paths are relative to the table's folder)")
    if not rows:
        raise UserError(f"{path} lists no pairs")
    images = ImageList.of(path.parent, [os.fsencode(row.image) for row in rows])
    masks = ImageList.of(path.parent, [os.fsencode(row.mask) for row in rows])
    return Pairs(images, masks, "table")


def _rows(path: Path) -> Iterator[_Row]:
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path} is neither a folder nor a .csv table with the columns image and mask")
    lines = csv_cells(path)
    _, columns = next(lines)
    if not set(COLUMNS[:2]) <= set(columns):
        raise UserError(f"{path}: the first line must name the columns image and mask; found {', '.join(columns) or 'nothing'}")
    for line, cells in lines:
        row = dict(zip(columns, cells, strict=True))
        split = row.get("split", "").strip()
        if split and split not in get_args(Split):
            raise UserError(f"{path}, line {line}: the split is {split!r}, expected train, val or test")
        yield _Row(line, row["image"].strip(), row["mask"].strip(), split)
