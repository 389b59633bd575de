"""Pairing of images and masks by their names: each mask has the name of its image, but for what is usual at its end."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "pictures", "photos")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass", "segmentationclassraw"),
    *("gtfine", "gtcoarse", "gt", "segmentations", "segmentation"),
)
# What the name of a file may have after the part that image and mask share; longer ones first.
IMAGE_ENDINGS = ("_leftImg8bit", "_image", "_img", "_sat")
MASK_ENDINGS = (
    *("_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtCoarse_labelTrainIds", "_gtCoarse_labelIds"),
    *("_labelTrainIds", "_labelIds", "_segmentation", "_annotation", "_labels", "_label", "_masks", "_mask", "-mask"),
    *("_seg", "_gt", "_L", ".segmentation", ".labels", ".label", ".masks", ".mask", ".seg"),
)

CITYSCAPES = re.compile(r".*_gt(?:Fine|Coarse)_(?:label(?:Train)?Ids|instance(?:Train)?Ids|color)")
"""The stem of a mask of Cityscapes: `labelIds` in the download, `labelTrainIds` made of it by its scripts."""

SceneLayout = Literal["folders", "voc", "ade20k", "cityscapes", "cityscapes_train_ids", "table"]


class Pairs(NamedTuple):
    """Images and masks in the same order, and what has no partner."""

    images: ImageList
    masks: ImageList
    layout: SceneLayout
    images_without_mask: tuple[Path, ...] = ()
    masks_without_image: tuple[Path, ...] = ()


class Side(NamedTuple):
    """The images or the masks of a set."""

    folder: str
    """Name of the folder that holds them."""
    where: str
    """What it is called in messages."""
    files: ImageList
    names: list[str]
    """What each is called below it, without its ending."""

    @classmethod
    def of(cls, folder: str, where: str, files: ImageList) -> Side:
        """All images of a list, under their own names."""
        return cls(folder, where, files, [named(files, index) for index in range(len(files))])

    def subset(self, chosen: Sequence[int]) -> Side:
        """Those at these indices."""
        return Side(self.folder, self.where, self.files.subset(chosen), [self.names[index] for index in chosen])


def named(files: ImageList, index: int) -> str:
    """The name of a file in its list, without its ending."""
    return PurePosixPath(os.fsdecode(files.name(index))).with_suffix("").as_posix()


def without(name: str, endings: Sequence[str]) -> str:
    """A name without what is usual at its end."""
    return next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), name)


def paired(images: Side, masks: Side) -> Pairs:
    """The pairs of images and masks, by name.

    Raises:
        UserError: fewer than half have a partner, or one has two.
    """
    masks, of_cityscapes = _one_each(masks)
    partners = _partners(images, masks)
    pairs = sorted((image, mask) for mask, image in partners.items())
    without_mask = sorted(set(range(len(images.names))) - set(partners.values()))
    without_image = [mask for mask in range(len(masks.names)) if mask not in partners]
    if 2 * len(pairs) < min(len(images.names), len(masks.names)):
        lonely = masks.files.path(without_image[0])
        raise UserError(
            f"only {len(pairs)} of {len(masks.names)} masks in {masks.where} have an image of the same name in {images.where}: "
            f"none belongs to {lonely.name}; name each mask as its image ({PurePosixPath(images.names[0]).name}.png, say), or "
            "give a table"
        )
    return Pairs(
        images.files.subset([image for image, _ in pairs]),
        masks.files.subset([mask for _, mask in pairs]),
        of_cityscapes or layout_of(images, masks, [image for image, _ in pairs]),
        tuple(images.files.path(index) for index in without_mask),
        tuple(masks.files.path(index) for index in without_image),
    )


def layout_of(images: Side, masks: Side, chosen: Sequence[int]) -> SceneLayout:
    """The known data set that these images and folders belong to, if they do."""
    if all(PurePosixPath(images.names[index]).name.startswith("ADE_") for index in chosen):
        return "ade20k"
    return "voc" if (images.folder, masks.folder) == ("JPEGImages", "SegmentationClass") else "folders"


def _one_each(masks: Side) -> tuple[Side, SceneLayout | None]:
    """Of Cityscapes one mask an image: the values of the download where they are there, else those of its scripts."""
    if not masks.names or not all(map(CITYSCAPES.fullmatch, masks.names)):
        return masks, None
    layouts: tuple[tuple[str, SceneLayout], ...] = (("_labelIds", "cityscapes"), ("_labelTrainIds", "cityscapes_train_ids"))
    for ending, layout in layouts:
        chosen = [index for index, name in enumerate(masks.names) if name.endswith(ending)]
        if chosen:
            return masks.subset(chosen), layout
    raise UserError(f"{masks.where} holds masks of Cityscapes, but none that ends in _labelIds or _labelTrainIds")


def _partners(images: Side, masks: Side) -> dict[int, int]:
    """The image of each mask that has one."""
    known: dict[str, list[int]] = {}
    for index, name in enumerate(images.names):
        for key in {name, without(name, IMAGE_ENDINGS)}:
            known.setdefault(key, []).append(index)
    partners: dict[int, int] = {}
    taken: dict[int, int] = {}
    for mask, name in enumerate(masks.names):
        found = known.get(name) or known.get(without(name, MASK_ENDINGS)) or []
        if len(found) > 1:
            first, second = (images.files.path(index) for index in found[:2])
            raise UserError(
                f"{masks.files.path(mask)} could belong to {first.name} and to {second.name}; rename one, or give a table of "
                "pairs"
            )
        if not found:
            continue
        if found[0] in taken:
            other = masks.files.path(taken[found[0]])
            raise UserError(
                f"{other} and {masks.files.path(mask).name} both belong to the image {images.files.path(found[0]).name}; "
                "move one of them elsewhere, or give a table of pairs"
            )
        taken[found[0]] = mask
        partners[mask] = found[0]
    return partners
