"""What is audited: the parts of a folder, a list or archives, read as masks, labels or images alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from beitkit.data.scenes.layout import locate_scenes, looks_like_scenes, scene_splits
from beitkit.data.scenes.scenes import Scenes, find_scenes
from beitkit.data.sources.find import LabeledFolder, find_images, labeled_source, split_folders
from beitkit.data.sources.folders import walk
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.lists import TABLES, Split
from beitkit.errors import UserError
from beitkit.report.normal import Line
from beitkit.runs.audit.config import AuditRun

Kind = Literal["images", "labeled images", "images with masks"]
JUDGED = ("val", "test")
"""Parts that networks are judged by; where an image is in several, it stays in the last of them."""


class AuditedPart(NamedTuple):
    """A split, or all where there are none."""

    name: str
    """train, val, test; empty where the images are not divided."""
    files: ImageList
    scenes: Scenes | None = None
    """The same with their masks, where these can be read."""


class Collection(NamedTuple):
    """What there is."""

    kind: Kind
    parts: tuple[AuditedPart, ...]
    """Those that networks are trained on first."""
    left_out: Counter[str]
    """Files that are no images, by ending."""
    lines: tuple[Line, ...]
    """What was odd about it."""


def collect(config: AuditRun) -> Collection:
    """The images of a command.

    Raises:
        UserError: nothing there, or not what `task` says.
    """
    lines: list[Line] = []
    kind: Kind = "images"
    if config.task == "segment" or (config.task == "auto" and looks_like_scenes(config.images)):
        kind, parts = "images with masks", _scenes(config, lines)
    elif config.task == "classify":
        kind, parts = "labeled images", _labeled(config)
    elif config.task == "none":
        parts = _unlabeled(config)
    else:
        try:
            kind, parts = "labeled images", _labeled(config)
        except UserError as error:
            kind, parts = "images", _unlabeled(config)
            if _may_have_labels(config.images):
                lines.append(Line("note", f"read as images without labels, because {error}"))
    left_out: Counter[str] = Counter()
    for path in (config.images, config.val):
        if path is not None and path.is_dir() and all(part.files.members is None for part in parts):
            for _ in walk(path, left_out):
                pass
    order = {name: place for place, name in enumerate(("", "train", "rest", *JUDGED))}
    parts.sort(key=lambda part: order.get(part.name, len(order)))
    return Collection(kind, tuple(parts), left_out, tuple(lines))


def _may_have_labels(path: Path) -> bool:
    """Whether somebody may have meant labels: a folder with folders in it, or a table."""
    if path.is_dir():
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir())
    return path.suffix.lower() in (*TABLES, ".jsonl")


def _labeled(config: AuditRun) -> list[AuditedPart]:
    source = labeled_source(config.images, config.columns)
    splits = source.splits
    is_divided = "train" in splits or len(splits) > (1 if isinstance(source, LabeledFolder) else 0)
    parts = [AuditedPart(split, source.read(split)) for split in splits] if is_divided else [AuditedPart("", source.read(None))]
    if config.val is not None:
        other = labeled_source(config.val, config.columns)
        parts = _with_val(parts, AuditedPart("val", other.read("val" if "val" in other.splits else None)))
    return parts


def _unlabeled(config: AuditRun) -> list[AuditedPart]:
    files = find_images(config.images, config.columns.image)
    folders = split_folders(config.images)
    parts = [AuditedPart("", files)]
    if files.members is None and ("train" in folders or len(folders) > 1):
        first = [files.name(index).split(b"/")[0].decode("utf-8", "surrogateescape") for index in range(len(files))]
        where = {folder.name: split for split, folder in folders.items()}
        names = np.array([where.get(name, "rest") for name in first])
        parts = [AuditedPart(str(name), files.subset(np.flatnonzero(names == name))) for name in np.unique(names)]
    if config.val is not None:
        parts = _with_val(parts, AuditedPart("val", find_images(config.val, config.columns.image)))
    return parts


def _scenes(config: AuditRun, lines: list[Line]) -> list[AuditedPart]:
    parts = [_scene_part(config, config.images, split, lines) for split in scene_splits(config.images, config.columns) or (None,)]
    if config.val is not None:
        split = "val" if "val" in scene_splits(config.val, config.columns) else None
        parts = _with_val(parts, _scene_part(config, config.val, split, lines)._replace(name="val"))
    return parts


def _scene_part(config: AuditRun, path: Path, split: Split | None, lines: list[Line]) -> AuditedPart:
    files = locate_scenes(path, split, config.columns).images
    scenes = None
    try:
        scenes = find_scenes(path, split=split, columns=config.columns)
    except UserError as error:
        lines.append(Line("warn", f"the masks cannot be read: {error}"))
    return AuditedPart(split or "", files, scenes)


def _with_val(parts: list[AuditedPart], val: AuditedPart) -> list[AuditedPart]:
    """With the images that were given to validate on, in place of a part of that name."""
    others = [part._replace(name=part.name or "train") for part in parts if part.name != "val"]
    return [*others, val]
