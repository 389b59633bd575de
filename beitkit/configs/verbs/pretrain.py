"""`beitkit pretrain`: what it takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.data import MaskConfig, ReadConfig, ViewConfig
from beitkit.configs.model import SizeName
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig, check_given
from beitkit.configs.verbs.parts import Flat, NetworkConfig
from beitkit.errors import UserError


@dataclass(frozen=True)
class PretrainRun:
    """Pre-train a vision Transformer on unlabelled pictures: predict the visual tokens of masked patches."""

    images: Positional[Path]
    """Folder of pictures (nested or flat), or a .txt/.csv list of files."""
    _: KW_ONLY
    tokenizer: Path
    """Tokenizer: a run folder of `beitkit tokenizer`, or a file that holds one."""
    out: Path
    """Run folder to make or to continue."""
    size: SizeName = "base"
    """Size of the network."""
    image_size: int = 224
    """Side of the square pictures, in pixels."""
    patch: int = 16
    """Side of a patch, in pixels."""
    train: Annotated[TrainConfig, Flat] = TrainConfig()
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    network: NetworkConfig = NetworkConfig()
    mask: MaskConfig = MaskConfig()
    view: ViewConfig = ViewConfig()
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        check_given(self.train, self.optim)
        if min(self.image_size, self.patch) < 1:
            raise UserError(f"--image-size and --patch must be at least 1, got {self.image_size} and {self.patch}")
