"""Options of `beitkit run`."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.bounds import Seed, config
from beitkit.configs.codec import later
from beitkit.configs.data import ColumnsConfig, ReadConfig
from beitkit.configs.model import SizeName
from beitkit.configs.parts import Flat, Json
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
BUDGET = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in SECONDS))


@config(kw_only=False)
class PipelineRun:
    """From images to a verdict and a model, within a budget: tokenizer, pre-training, probe, verdict, fine-tuning, export.

    Each stage is an ordinary run in a folder below `out`, with sizes and lengths chosen from the images, the speed of this
    machine and the time that is left. The same command goes on where it stopped; stages that are finished stay as they are.
    """

    images: Positional[Path]
    """Images to pre-train on: a folder (nested or flat), a list of files, tar shards, Parquet files, or an .index."""
    _: KW_ONLY
    out: Path
    """Folder for the stages, report.html and progress.json; made or continued."""
    labels: Path | None = None
    """Labeled images: class folders or a list, as for `beitkit finetune`, or images and masks, as for `beitkit segment`. Without
    them it ends after pre-training."""
    val: Path | None = None
    """Labeled images to compare on, when they are not in a val/ part; without either, a fifth is set aside by `seed`."""
    budget: str = "2h"
    """Time for all of it, such as 20m, 2h or 1h30m; starts that were cut count. Another one may be given to go on."""
    init: Path | None = None
    """Go on from this network instead of fresh weights, as `beitkit pretrain` does; the verdict compares with it too."""
    size: SizeName | None = None
    """Size of the network; None chooses by the budget."""
    seed: Seed = 0
    """Of every stage; the verdict takes this one and the next two."""
    json: Json = later(False)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()
    columns: ColumnsConfig = ColumnsConfig()

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise UserError(f"`budget` is a time such as 20m, 2h or 1h30m, got {self.budget!r}")
        if self.val is not None and self.labels is None:
            raise UserError("`val` holds labeled images to compare on; give `labels` with it, or leave it out")
        if self.init is not None and self.size is not None:
            raise UserError("`init` says of which size the network is; leave `size` out")

    @property
    def seconds(self) -> float:
        """The budget; 0 for what is not a time."""
        found = BUDGET.fullmatch(self.budget)
        return sum(float(found[unit] or 0) * each for unit, each in SECONDS.items()) if found else 0.0
