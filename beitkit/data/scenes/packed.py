"""Pairs of images and masks in archives and indexes.

In tar archives and in an index they are told apart as on disk: by a folder in their names (`images/a.jpg`, `masks/a.png`), else
side by side by what is at the end of a mask's name (`a.jpg`, `a.mask.png`), or as the only lossless file of a name (`a.png`
beside `a.jpg`). In Parquet files they are two columns.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import get_args

from beitkit.configs.data import ColumnsConfig
from beitkit.data.scenes.pairing import IMAGE_FOLDERS, MASK_ENDINGS, MASK_FOLDERS, Pairs, Side, layout_of, paired, without
from beitkit.data.sources.archives import Archives, archive_images
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.list_rows import known_column
from beitkit.data.sources.lists import SPLIT_NAMES, Split
from beitkit.data.sources.parquet import image_columns
from beitkit.errors import UserError

LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
"""Endings of files that no mask can be."""
MASK_COLUMNS = (*MASK_FOLDERS, "segmentation_mask", "semantic_segmentation", "label_map")
"""Names of a column of masks, upper or lower case."""
_SPLIT_OF: dict[str, Split] = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def packed_splits(path: Path, packed: str | Archives) -> tuple[Split, ...]:
    """The splits that archives are named after, or that folders in the names of their members are."""
    if isinstance(packed, Archives) and (packed.splits or packed.kind == "parquet"):
        return packed.splits
    images, masks = _sides(str(path), find_images(path))
    return tuple(split for split in get_args(Split) if all(split in map(_split_of, side.names) for side in (images, masks)))


def packed_pairs(path: Path, packed: str | Archives, split: Split | None, columns: ColumnsConfig) -> Pairs:
    """The pairs of archives or of an index, of one split where they are divided.

    Raises:
        UserError: an archive or index that cannot be read, no masks in it, a split that is missing or has to be chosen.
    """
    if isinstance(packed, Archives) and packed.kind == "parquet":
        return _of_columns(packed.of_split(split), columns)
    if columns != ColumnsConfig():
        raise UserError(f"`columns` names columns of a table or of Parquet files, but {path} has none; leave it out")
    if isinstance(packed, Archives) and packed.splits:
        images, masks = _sides(str(path), archive_images(packed.of_split(split), labeled=False))
        return paired(images, masks)
    splits = packed_splits(path, packed)
    if split is None and splits:
        raise UserError(f"{path} is divided into {', '.join(splits)}; choose one of these splits")
    if split is not None and split not in splits:
        has = f"it has {', '.join(splits)}" if splits else "it is not divided"
        raise UserError(f"{path} has no split {split!r}; {has}")
    sides = _sides(str(path), find_images(path))
    if split is not None:
        first, second = ([index for index, name in enumerate(side.names) if _split_of(name) == split] for side in sides)
        sides = sides[0].subset(first), sides[1].subset(second)
    return paired(*sides)


def _of_columns(packed: Archives, columns: ColumnsConfig) -> Pairs:
    """The images and the masks in two columns of Parquet files."""
    found = image_columns(packed.places[0])
    mask = columns.label[0] if columns.label is not None else known_column(found, MASK_COLUMNS)
    others = [name for name in found if name != mask]
    image = columns.image or (others[0] if len(others) == 1 else None)
    if mask is None or mask not in found or mask == image:
        has = f"only {', '.join(found)}" if found else "none"
        raise UserError(
            f"{packed.given} has no column of masks: of columns with images it has {has}; expected one called mask, annotation, "
            "label or the like, or named by `columns.label`"
        )
    images = archive_images(packed, labeled=False, columns=ColumnsConfig(image=image))
    masks = archive_images(packed, labeled=False, columns=ColumnsConfig(image=mask))
    sides = Side.of("", packed.given, images), Side.of("", packed.given, masks)
    return Pairs(images, masks, layout_of(*sides, range(len(images))))


def _sides(where: str, files: ImageList) -> tuple[Side, Side]:
    """The images and the masks of a list, each with its name without what tells them apart."""
    names = [os.fsdecode(files.name(index)) for index in range(len(files))]
    sides: tuple[list[tuple[int, str, str]], list[tuple[int, str, str]]] = ([], [])
    stems = [PurePosixPath(name).with_suffix("") for name in names]
    known = {stem.as_posix() for stem in stems}
    lossy = {stem.as_posix() for stem, name in zip(stems, names, strict=True) if name.lower().endswith(LOSSY)}
    for index, (name, stem) in enumerate(zip(names, stems, strict=True)):
        *folders, last = stem.parts
        place = next((i for i, folder in enumerate(folders) if folder.lower() in (*IMAGE_FOLDERS, *MASK_FOLDERS)), None)
        if place is not None:
            is_mask = folders[place].lower() in MASK_FOLDERS
            shared = PurePosixPath(*folders[:place], *folders[place + 1 :], last).as_posix()
            sides[is_mask].append((index, folders[place], shared))
            continue
        whole, bare = stem.as_posix(), without(stem.as_posix(), MASK_ENDINGS)
        is_mask = not name.lower().endswith(LOSSY) and (whole in lossy or (bare != whole and bare in known))
        sides[is_mask].append((index, "", bare if is_mask and whole not in lossy else whole))
    if not sides[0] or not sides[1]:
        what = "images but no masks" if sides[0] else "masks but no images" if sides[1] else "no images"
        raise UserError(
            f"{where} holds {what}; masks are known by a folder such as masks/ in their names, or by names such as a.mask.png "
            "beside a.jpg"
        )
    images, masks = (
        Side(side[0][1], where, files.subset([index for index, _, _ in side]), [name for _, _, name in side]) for side in sides
    )
    return images, masks


def _split_of(name: str) -> Split | None:
    """The split that a folder in a name is called after."""
    return next((_SPLIT_OF[part] for part in PurePosixPath(name).parts[:-1] if part in _SPLIT_OF), None)
