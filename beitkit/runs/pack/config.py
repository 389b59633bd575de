"""Options of `beitkit pack` and `beitkit index`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from beitkit.configs.bounds import PositiveInt, config
from beitkit.configs.codec import later
from beitkit.configs.data import ColumnsConfig, ReadConfig
from beitkit.configs.parts import Json
from beitkit.errors import UserError

SplitName = Literal["train", "val", "test"]


@config(kw_only=False)
class PackRun:
    """Copy images into tar shards (WebDataset's layout), which every verb reads in their place."""

    images: Positional[Path]
    """Folder of images, class folders, a list of files, Parquet files, other shards, or an index."""
    _: KW_ONLY
    out: Path
    """Folder for the shards and their index. The same command continues it."""
    shard_size: PositiveInt = 256
    """Size of a shard in MB; one image is never divided."""
    labels: bool = False
    """Keep the images' labels, as .cls members and classes.txt."""
    split: SplitName | None = None
    """With `labels`: the part to take of images that are divided."""
    json: Json = later(False)
    read: ReadConfig = ReadConfig()
    columns: ColumnsConfig = ColumnsConfig()

    def __post_init__(self) -> None:
        _check_labels(self.split, self.columns, self.labels)


@config(kw_only=False)
class IndexRun:
    """Walk through images once and write down what was found, in a file that every verb reads in their place."""

    images: Positional[Path]
    """Folder of images, class folders, a list of files, tar shards, Parquet files, or a URL of these two."""
    _: KW_ONLY
    out: Path
    """File to write; it ends in .index."""
    labels: bool = False
    """Keep the images' labels."""
    split: SplitName | None = None
    """With `labels`: the part to take of images that are divided."""
    json: Json = later(False)
    columns: ColumnsConfig = ColumnsConfig()

    def __post_init__(self) -> None:
        _check_labels(self.split, self.columns, self.labels)
        if self.out.suffix != ".index":
            raise UserError(f"`out='{self.out}'` must end in .index, by which verbs know it for an index")


def _check_labels(split: SplitName | None, columns: ColumnsConfig, labels: bool) -> None:
    if not labels and (columns.label, columns.separator) != (None, None):
        raise UserError("`columns.label` and `columns.separator` are for labeled images; give `labels` too, or leave them out")
    if split is not None and not labels:
        raise UserError(f"`split='{split}'` is for labeled images; give `labels` too, or the folder of the split")
