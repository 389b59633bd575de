"""Options of `beitkit segment`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional

from beitkit.configs.bounds import PositiveInt, ShareBelowOne, config
from beitkit.configs.codec import later
from beitkit.configs.data import Channels, ColumnsConfig, ReadConfig, SceneViewConfig, ValueLimits
from beitkit.configs.model import ImageSizeOrNone, SegmentationHead, SizeName
from beitkit.configs.parts import Flat, Json, NetworkConfig, check_start
from beitkit.configs.segmentation import InferenceConfig, SegmentationLossConfig
from beitkit.configs.train import (
    Freeze,
    LightConfig,
    LoopConfig,
    MachineConfig,
    OptimConfig,
    SinkName,
    SpeedConfig,
    TrainConfig,
    check_light,
    check_scratch,
)


@config(kw_only=False)
class SegmentRun:
    """Fine-tune for semantic segmentation: name every pixel of an image.

    What is None is chosen from the images, the network and the device; each choice is printed with its reason.
    """

    TEXTS: ClassVar[dict[str, str]] = {
        "epochs": "Passes over the images; None chooses a number of steps by how many there are, and by the device.",
        "batch_size": "Images per forward pass; None chooses by the images and the device.",
        "lr": "Peak learning rate at a batch of `optim.lr_batch` images, scaled to yours; None chooses by start and width.",
        "optim.warmup_epochs": "Linear warm-up from 0, in epochs; None takes 1,500 steps, at most a tenth of the run.",
        "optim.layer_decay": "Each block below the top learns this much slower than the one above it; None chooses by start and "
        "depth, and takes 1 from scratch.",
        "loop.ema": "Decay of a moving average of the weights, which is then the finished model; 0 and None keep none.",
    }
    """What options of shared parts mean here, in place of their own texts."""

    images: Positional[Path]
    """Folder with images/ and masks/ (or ADE20K's, Pascal VOC's or CamVid's layout), or a table of pairs."""
    _: KW_ONLY
    out: Path
    """Run folder to make or to continue."""
    model: Path | None = None
    """Pre-trained run folder or checkpoint to start from."""
    recipe: str | None = None
    """Start from a recipe's values instead of the defaults; other options override them. `beitkit recipes` lists them."""
    scratch: bool = False
    """Start from fresh weights instead, with the network that `model` describes, or else `size`: what did pre-training buy?"""
    size: SizeName | None = None
    """Size of the network, from scratch without `model`."""
    patch: PositiveInt | None = None
    """Side of a patch in pixels, from scratch without `model`; None takes 16."""
    image_size: ImageSizeOrNone = None
    """Of the crops that the network sees, in pixels: the side of squares, or height and width; positions are resized to it."""
    head: SegmentationHead = "uper"
    """uper: BEiT's UPerNet; setr_pup: the paper's progressive upsampling; linear: one layer, to judge features."""
    channels: PositiveInt | None = None
    """Width of the decoder; if left out the network's own for uper (768 and 1024 in the official configs), 256 for setr_pup."""
    image_channels: Channels | None = later(None)
    """Channels of the images; None takes those of images that are neither gray nor RGB, else the checkpoint's, or 3."""
    value_range: ValueLimits | None = later(None)
    """Values of the files that are black and white, such as 0 4095; None takes the checkpoint's if it has any, else 0 to 255 for
    images of 8 bits, and else finds them in the images."""
    freeze: Freeze = False
    """Parts that stay as they are: patch_embed, positions, tokens, blocks, or of the blocks attn, mlp or norms. Without a value:
    everything but the head."""
    val: Path | None = None
    """Images and masks to evaluate on, when there is no val/ part."""
    classes: Path | None = None
    """A classes.json with names, colors and ids, when it does not lie beside the images."""
    all_values: bool = later(False)
    """Without a classes.json: take every value in the masks for a class, rare ones along edges too, which smoothing makes."""
    compare: Path | None = None
    """Another segmentation run to set beside this one in the report (from scratch, say)."""
    normalization: Literal["imagenet", "inception", "data"] | None = None
    """Pixel statistics: imagenet, inception, or the images' own; the checkpoint's if left out (the official runs take imagenet's
    whatever the backbone saw)."""
    patience: PositiveInt | None = later(None)
    """Stop after this many evaluations in a row (`loop.evaluate_every`) that are not better, and take the best one's weights;
    None trains to the end and takes the last ones."""
    drop_path: ShareBelowOne | None = None
    """Stochastic depth of the last block."""
    log: SinkName | None = later(None)
    """Send the numbers of the journal there as well (`pip install beitkit[NAME]`); nothing is sent without it."""
    json: Json = later(False)
    train: Annotated[TrainConfig, Flat] = TrainConfig(batch_size=None, lr=None)
    light: Annotated[LightConfig, Flat] = later(LightConfig())
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    network: NetworkConfig = NetworkConfig()
    view: SceneViewConfig = SceneViewConfig()
    loss: SegmentationLossConfig = SegmentationLossConfig()
    inference: InferenceConfig = InferenceConfig()
    optim: OptimConfig = OptimConfig(schedule="linear", lr_batch=16, min_lr=0.0, warmup_epochs=None, clip=None)
    loop: LoopConfig = LoopConfig()
    speed: SpeedConfig = SpeedConfig()
    read: ReadConfig = ReadConfig()
    columns: ColumnsConfig = later(ColumnsConfig())

    def __post_init__(self) -> None:
        check_start(self.model, self.scratch, self.network, {"size": self.size, "patch": self.patch})
        check_light(self.light, self.freeze)
        if self.scratch:
            check_scratch(self.light, self.freeze)
