"""Images with label maps: find, pair, read and split them into training and validation.

Images and masks lie in two folders (`images/` and `masks/`, or other usual names), flat, divided into `train/` and `val/`
below both, or the other way round (`train/images/`); Pascal VOC, ADE20K and tables of pairs are read too. Classes come from
`classes.json`, the known data set, or the values that occur.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

from beitkit.configs.data import ColumnsConfig, ValueRange
from beitkit.contracts import IGNORED
from beitkit.data.decoding.decode import BrokenImage, Header, to_tensor
from beitkit.data.decoding.reading import as_tensor, header_of, whole_image
from beitkit.data.own.images import OwnImages
from beitkit.data.own.masks import OwnMasks
from beitkit.data.scenes.class_names import ADE20K, CAMVID, CAMVID_SEQUENCES, CAMVID_VOID, CITYSCAPES, CITYSCAPES_VALUES, VOC
from beitkit.data.scenes.discover import discovered
from beitkit.data.scenes.label_codes import LabelMapping, checked_names, plain_code, read_classes, voc_palette
from beitkit.data.scenes.layout import COLUMNS, Pairs, locate_scenes, scene_splits
from beitkit.data.scenes.masks import read_mask
from beitkit.data.seeds import derived_seed
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.list_rows import BAND, csv_cells
from beitkit.data.sources.lists import Split
from beitkit.data.sources.split import VAL_SHARE, refuse_other_files
from beitkit.errors import UserError, few

CLASSES_FILE = "classes.json"
MOST_READ = 4000  # masks that are read to find classes, to divide or to audit; of more, a sample drawn by seed


class Scene(NamedTuple):
    """An image at its own size, upright, and its class ids, 255 where nothing counts."""

    image: Shaped[Tensor, "c h w"]
    """uint8, or of deep images float32 in [0, 1]."""
    label_map: UInt8[Tensor, "h w"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scenes:
    """Images and masks in the same order, and what the masks mean. Build one with `find_scenes`."""

    files: ImageList
    masks: ImageList
    code: LabelMapping
    images_without_mask: tuple[Path, ...] = ()
    masks_without_image: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by id."""
        return self.code.classes

    @property
    def digest(self) -> str:
        """Hexadecimal digest of names, order and code; moving the whole folder does not change it."""
        parts = (self.files.digest, self.masks.digest, self.code.as_json())
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def subset(self, indices: Sequence[int]) -> Scenes:
        """The pairs at these indices, in this order."""
        return replace(self, files=self.files.subset(indices), masks=self.masks.subset(indices))

    def header(self, index: int) -> Header:
        """Size and orientation of one image.

        Raises:
            BrokenImage: the image cannot be read.
        """
        items = self.files.items
        return header_of(self.files.source(index)) if items is None else items.header(int(self.files.name(index)))

    def label_map(self, index: int) -> Image.Image:
        """Class ids of one image, upright, in mode "L"; for `ImageDataset(label_map=...)`.

        A mask is as large as its image. Where EXIF turns the image and the mask has the size from before the turn, it
        is turned along; where both sizes are equal (a square, half a turn) it counts as upright already, as drawn by a
        program that showed the image upright.

        Raises:
            BrokenImage: unreadable, of another size than the image, or with values that mean nothing; of the mask.
        """
        mask = read_mask(self.masks.source(index))
        ids = Image.fromarray(self.code.label_map(mask))
        header = self.header(index)
        if ids.size == header.upright:
            return ids
        if header.turn is not None and ids.size == header.stored:
            return ids.transpose(header.turn)
        image = self.files.path(index).name
        sizes = f"{ids.width}x{ids.height} pixels, but its image {image} {header.upright[0]}x{header.upright[1]}"
        raise BrokenImage(mask.path, f"has {sizes}; a mask must be as large as its image")

    def read(self, index: int, channels: int = 3, value_range: ValueRange | None = None) -> Scene:
        """One pair at its original size, as evaluation and prediction need it.

        Raises:
            BrokenImage: the image or the mask cannot be used.
        """
        image = whole_image(self.files.source(index), channels, value_range)
        return Scene(as_tensor(image), to_tensor(self.label_map(index))[0])


def find_scenes(
    path: Path | str | OwnImages,
    *,
    split: Split | None = None,
    classes: Path | LabelMapping | None = None,
    all_values: bool = False,
    columns: ColumnsConfig = ColumnsConfig(),
) -> Scenes:
    """Images with label maps below a folder, in archives or an index, or in a CSV table with the columns `image`, `mask` and
    perhaps `split`; `columns` names others, of masks under `label`. Or the items of a dataset that a caller gave.

    `classes` is a `classes.json`, or the code of other scenes (pass the training scenes' code when reading validation
    scenes). Without it the code comes from the `classes.json` beside the folders or the table, else from the data set where
    it is Pascal VOC, ADE20K, Cityscapes or CamVid, else from the values that occur in the masks (in 4000 of them,
    drawn by a fixed seed, where there are more): each is a class, 255 is ignored. Masks with many rare values along edges, as
    smoothing makes them, are refused unless `all_values` says that each is meant. A dataset may name the classes of values 0, 1,
    and so on by an attribute `classes`.

    Raises:
        UserError: an unknown layout, names that do not pair, a faulty classes.json, or masks whose classes cannot be told.
    """
    if isinstance(path, OwnImages):
        return _own_scenes(path, classes, all_values=all_values)
    path = Path(path)
    pairs = locate_scenes(path, split, columns)
    return Scenes(
        files=pairs.images,
        masks=pairs.masks,
        code=classes if isinstance(classes, LabelMapping) else _code(path, classes, pairs, all_values=all_values),
        images_without_mask=pairs.images_without_mask,
        masks_without_image=pairs.masks_without_image,
    )


def train_and_val_scenes(
    images: Path | OwnImages,
    val: Path | OwnImages | None,
    seed: int,
    *,
    classes: Path | None = None,
    all_values: bool = False,
    columns: ColumnsConfig = ColumnsConfig(),
) -> tuple[Scenes, Scenes]:
    """Training and validation scenes with the same classes.

    Validation scenes come from `val`, else from the val (or test) split beside the train split, else a fifth is set aside:
    the pairs whose hash with `seed` is smallest, so that further images leave the others where they are. A pair that
    alone shows one of its classes stays in training (looked for in sets of up to 4000 pairs).

    Raises:
        UserError: as `find_scenes`; a set that cannot be divided.
    """
    splits = scene_splits(images, columns)
    part = "train" if "train" in splits else None
    train = find_scenes(images, split=part, classes=classes, all_values=all_values, columns=columns)
    if val is not None:
        if isinstance(val, OwnImages):
            _refuse_other_scenes(images, val, train, is_coded=classes is not None)
        part = "val" if "val" in scene_splits(val, columns) else None
        aside = find_scenes(val, split=part, classes=train.code, columns=columns)
        refuse_other_files(train.files, aside.files)
        return train, aside
    for split in ("val", "test"):
        if "train" in splits and split in splits:
            return train, find_scenes(images, split=split, classes=train.code, columns=columns)
    aside = _set_aside(train, seed)
    kept = sorted(set(range(len(train))) - set(aside))
    return train.subset(kept), train.subset(aside)


def as_csv(parts: Mapping[str, Scenes]) -> str:
    """The pairs of several splits, or of one without a name, as a table that `find_scenes` reads, with absolute paths.

    The classes are not in it: write `LabelMapping.as_json` beside it, as classes.json.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    bands = max(scenes.files.files_each for scenes in parts.values())
    table.writerow(COLUMNS if bands == 1 else (*(f"{BAND}{number}" for number in range(1, bands + 1)), *COLUMNS[1:]))
    for split, scenes in parts.items():
        for index in range(len(scenes)):
            images = (scenes.files.path(index),) if bands == 1 else scenes.files.files(index)
            table.writerow(
                [*(_listed(scenes.files, image) for image in images), _listed(scenes.masks, scenes.masks.path(index)), split]
            )
    return text.getvalue()


def set_aside_before(table: Path, scenes: Scenes) -> Scenes:
    """The validation scenes that `as_csv` wrote down, among those of archives and datasets, which a table cannot name.

    Raises:
        UserError: some of them are no longer there.
    """
    lines = csv_cells(table)
    next(lines)
    named = {cells[0] for _, cells in lines if cells[2] == "val"}
    chosen = [index for index in range(len(scenes)) if _listed(scenes.files, scenes.files.path(index)) in named]
    if len(chosen) != len(named):
        raise UserError(f"{table} names {len(named)} images for validation, but {len(chosen)} of them are there")
    return scenes.subset(chosen)


def _listed(files: ImageList, path: Path) -> str:
    """What a table calls one of the files."""
    return str(path if files.items is not None else path.absolute())


def sampled(count: int, limit: int, *seed: int | str) -> list[int]:
    """Indices below `count`, in order: all of them, or `limit` drawn by the seed."""
    if count <= limit:
        return list(range(count))
    return sorted(random.Random(derived_seed(*seed)).sample(range(count), limit))


def _code(path: Path, classes: Path | None, pairs: Pairs, *, all_values: bool) -> LabelMapping:
    beside = (path if path.is_dir() else path.parent) / CLASSES_FILE
    if classes is not None:
        return read_classes(classes)
    if beside.is_file():
        return read_classes(beside)
    if pairs.layout == "voc":
        return replace(plain_code(VOC, "Pascal VOC"), palette=voc_palette(len(VOC)))
    if pairs.layout == "ade20k":
        return plain_code(ADE20K, "ADE20K", values=range(1, len(ADE20K) + 1), ignored=(0, IGNORED))
    if pairs.layout in ("cityscapes", "cityscapes_train_ids"):
        values = [value for value, _ in CITYSCAPES.values()] if pairs.layout == "cityscapes" else range(len(CITYSCAPES))
        void = {*range(CITYSCAPES_VALUES), IGNORED} - set(values) if pairs.layout == "cityscapes" else {IGNORED}
        code = plain_code(tuple(CITYSCAPES), "Cityscapes", values=values, ignored=tuple(void))
        return replace(code, palette=tuple(color for _, color in CITYSCAPES.values()))
    if _is_camvid(pairs.images):
        return _camvid_code()
    chosen = sampled(len(pairs.masks), MOST_READ, 0, "classes")
    return discovered(pairs.masks, chosen, beside, is_each_meant=all_values)


def _own_scenes(given: OwnImages, classes: Path | LabelMapping | None, *, all_values: bool) -> Scenes:
    """The items of a dataset that a caller gave."""
    images, masks = map(ImageList.of_items, OwnMasks.beside(given))
    if isinstance(classes, LabelMapping):
        code = classes
    elif classes is not None:
        code = read_classes(classes)
    elif given.classes:
        where = f"`classes` of {given.description}"
        code = plain_code(checked_names(where, list(given.classes)), where)
    else:
        chosen = sampled(len(masks), MOST_READ, 0, "classes")
        code = discovered(masks, chosen, "a classes.json for `classes`", is_each_meant=all_values)
    return Scenes(files=images, masks=masks, code=code)


def _refuse_other_scenes(images: Path | OwnImages, val: OwnImages, train: Scenes, *, is_coded: bool) -> None:
    """Raise for a caller's validation scenes that are the training scenes, or say that they have other classes."""
    if isinstance(images, OwnImages) and images.dataset is val.dataset:
        raise UserError(f"{val.description} is given for training and for validation; give two datasets, or leave `val` out")
    if val.classes and not is_coded and val.classes != train.classes:
        raise UserError(
            f"`val` {val.description} has the classes {few(val.classes, 4)} and the training images {few(train.classes, 4)}; "
            "they must be the same in the same order"
        )


def _is_camvid(images: ImageList) -> bool:
    """Whether all images are named after CamVid's four sequences."""
    return all(images.path(index).name.startswith(CAMVID_SEQUENCES) for index in range(len(images)))


def _camvid_code() -> LabelMapping:
    """SegNet's 11 classes of CamVid: values 0 to 10 with 11 ignored, or the colors of the original's 32 classes."""
    names, groups = tuple(CAMVID), list(CAMVID.values())
    values = {label: label for label in range(len(names))} | {len(names): IGNORED, IGNORED: IGNORED}
    colors = {color: label for label, group in enumerate(groups) for color in group} | {CAMVID_VOID: IGNORED}
    return LabelMapping(
        classes=names,
        values=tuple(values.items()),
        colors=tuple(colors.items()),
        palette=tuple(group[0] for group in groups),
        source="CamVid",
    )


def _set_aside(scenes: Scenes, seed: int) -> list[int]:
    if len(scenes) < 2:
        raise UserError(f"{scenes.files.root} holds a single pair, so none can be set aside for validation; give `val`")
    names = [_name(scenes.files, index) for index in range(len(scenes))]
    order = sorted(range(len(scenes)), key=lambda index: derived_seed(seed, "set aside", names[index]))
    present = _present(scenes) if len(scenes) <= MOST_READ else np.zeros((len(scenes), 0), dtype=bool)
    left = present.sum(axis=0)
    aside: list[int] = []
    for index in order:
        if len(aside) == max(1, round(len(scenes) * VAL_SHARE)):
            break
        if (left[present[index]] > 1).all():
            aside.append(index)
            left = left - present[index]
    if not aside:
        raise UserError(f"every image in {scenes.files.root} alone shows some class, so none can be set aside; give `val`")
    return sorted(aside)


def _name(files: ImageList, index: int) -> str:
    """What an image is called below the common root."""
    if files.members is not None or files.items is not None:
        return os.fsdecode(files.name(index))
    return Path(os.path.relpath(files.path(index), files.root)).as_posix()


def _present(scenes: Scenes) -> np.ndarray:
    """Which classes each image shows, (images, classes); none of a mask that cannot be used, which the audit names."""
    present = np.zeros((len(scenes), len(scenes.classes)), dtype=bool)
    for index in range(len(scenes)):
        try:
            shown = scenes.code.label_map(read_mask(scenes.masks.source(index)))
        except BrokenImage:
            continue
        present[index] = np.bincount(shown.ravel(), minlength=IGNORED + 1)[: len(scenes.classes)] > 0
    return present
