"""Images of another task than a verb's: they are refused with the verb that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beitkit.configs.data import ColumnsConfig
from beitkit.data.scenes.layout import looks_like_scenes
from beitkit.data.sources.find import labeled_source
from beitkit.errors import UserError


def refuse_scenes(images: Path) -> None:
    """Raise a `UserError` where a folder or table holds images with masks, whose folders are not classes."""
    if looks_like_scenes(images):
        raise UserError(f"{images} holds images and masks, and this takes class folders or a list of labels; use beitkit segment")


@contextmanager
def refused_if_labeled(images: Path, columns: ColumnsConfig) -> Iterator[None]:
    """An error inside the block says which verb is meant where a folder has no masks, but classes."""
    try:
        yield
    except UserError:
        if not images.is_dir() or looks_like_scenes(images) or not _is_labeled(images, columns):
            raise
        raise UserError(
            f"{images} holds class folders, and this takes images and masks, such as images/ and masks/; use beitkit finetune"
        ) from None


def _is_labeled(images: Path, columns: ColumnsConfig) -> bool:
    try:
        source = labeled_source(images, columns)
        return bool(source.read("train" if "train" in source.splits else None).classes)
    except UserError:
        return False
