"""`beitkit segment`: what it takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.data import ReadConfig, SceneViewConfig
from beitkit.configs.model import SegmentationHead, SizeName
from beitkit.configs.segmentation import InferenceConfig, SegmentationLossConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.configs.verbs.parts import Flat, NetworkConfig
from beitkit.errors import UserError, check_finite


@dataclass(frozen=True)
class SegmentRun:
    """Fine-tune for semantic segmentation: name every pixel of a picture."""

    images: Positional[Path]
    """Folder with images/ and masks/ (or ADE20K's, Pascal VOC's or CamVid's layout), or a table of pairs."""
    _: KW_ONLY
    out: Path
    """Run folder to make or to continue."""
    model: Path | None = None
    """Pre-trained run folder or checkpoint to start from."""
    scratch: bool = False
    """Start from fresh weights: of the network that --model describes, or without --model of --size and --patch."""
    size: SizeName = "base"
    """Size of the network, with --scratch and no --model."""
    patch: int = 16
    """Side of a patch in pixels, with --scratch and no --model."""
    image_size: int | None = None
    """Side in pixels of the square crops that the network sees; chosen by the pictures if left out."""
    head: SegmentationHead = "uper"
    """uper: BEiT's UPerNet; setr_pup: the paper's progressive upsampling; linear: one layer, to judge features."""
    channels: int | None = None
    """Width of the decoder; if left out the network's own for uper (768 and 1024 in the official configs), 256 for setr_pup."""
    freeze: bool = False
    """Train the head alone on frozen features."""
    val: Path | None = None
    """Pictures and masks to evaluate on, when there is no val/ part."""
    classes: Path | None = None
    """A classes.json with names, colors and ids, when it does not lie beside the pictures."""
    compare: Path | None = None
    """Another segmentation run to set beside this one in the report (from scratch, say)."""
    drop_path: float | None = None
    """Stochastic depth of the last block; 0.1 if left out, 0 for frozen features and networks of fewer than 12 blocks."""
    train: Annotated[TrainConfig, Flat] = TrainConfig(batch_size=None, lr=None)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    network: NetworkConfig = NetworkConfig(positions="per_block", drop_path=0.0)
    view: SceneViewConfig = SceneViewConfig()
    loss: SegmentationLossConfig = SegmentationLossConfig()
    inference: InferenceConfig = InferenceConfig()
    optim: OptimConfig = OptimConfig(schedule="linear", lr_batch=16, min_lr=0.0, warmup_epochs=None, clip=None)
    loop: LoopConfig = LoopConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        check_finite(self)
        if self.model is None and not self.scratch:
            raise UserError("give --model to start from, or --scratch with --size and --patch for fresh weights")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise UserError(f"--drop-path must lie in [0, 1), got {self.drop_path}")
        if self.channels is not None and self.channels < 1:
            raise UserError(f"--channels must be at least 1, got {self.channels}")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image-size must be at least 1, got {self.image_size}")
        if self.freeze and self.scratch:
            raise UserError("--freeze keeps the features of --model; with --scratch there are none worth keeping")
