"""Options of `beitkit audit`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from beitkit.configs.bounds import Bounds, PositiveInt, config
from beitkit.configs.data import ColumnsConfig, ReadLimit
from beitkit.configs.model import ImageSizeOrNone
from beitkit.configs.parts import Json


@config(kw_only=False)
class AuditRun:
    """Look at every image before a run does: what is broken, odd, twice there, or in training and in validation; what to set.

    Images are read once and never changed.
    """

    images: Positional[Path]
    """A folder, nested or with a folder for each class, perhaps divided into train/ and val/; images/ and masks/; a list."""
    _: KW_ONLY
    val: Path | None = None
    """Images to validate on, when they are not in a val/ part: the same image in both is named."""
    task: Literal["auto", "none", "classify", "segment"] = "auto"
    """What folders and lists mean: none reads images without labels. auto takes masks where there are any, else labels."""
    out: Path | None = None
    """Where to write report.html, with sheets of what was found, and audit.json; nothing is written without it."""
    list: Path | None = None
    """Where to write a .csv list without what is bad: broken, blank, twice there, or like an image to validate on."""
    near: Annotated[float, Bounds(ge=0, lt=1)] = 0.3
    """Distance up to which images count as near duplicates; less where things merely look alike, 0 looks for none."""
    image_size: ImageSizeOrNone = None
    """Of the network's images, to count those that are smaller: the side of squares, or height and width; None proposes one."""
    patch: PositiveInt | None = None
    """Side of the network's patches; None proposes one."""
    json: Json = False
    workers: Annotated[int, Bounds(ge=-1)] = -1
    """Processes that read images; -1 takes one for each core, 0 reads in the main process."""
    read: ReadLimit = ReadLimit()
    columns: ColumnsConfig = ColumnsConfig()
