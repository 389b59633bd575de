"""Options of `beitkit finetune`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, Suppress

from beitkit.configs.bounds import Bounds, PositiveInt, PositiveShare, ShareBelowOne, config
from beitkit.configs.codec import later
from beitkit.configs.data import CHOSEN_VIEW, AugmentConfig, Channels, ColumnsConfig, Fit, ReadConfig, ValueLimits, ViewConfig
from beitkit.configs.model import ImageSizeOrNone, Pooling, SizeName
from beitkit.configs.parts import Flat, Json, NetworkConfig, check_start, shard_of
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
from beitkit.errors import UserError


@config(kw_only=False)
class FinetuneRun:
    """Fine-tune for classification, from a pre-trained model or from scratch in the same set-up.

    What is None is chosen from the images, the network and the device; each choice is printed with its reason.
    """

    TEXTS: ClassVar[dict[str, str]] = {
        "epochs": "Passes over the images; None chooses by how many there are.",
        "batch_size": "Images per forward pass; None chooses by the images, the network and the device.",
        "lr": "Peak learning rate at a batch of `optim.lr_batch` images, scaled to yours; None chooses by the network.",
        "optim.warmup_epochs": "Linear warm-up from 0, in epochs; None takes a tenth of the run.",
        "optim.layer_decay": "Each block below the top learns this much slower than the one above it; None chooses by the depth, "
        "and 1 from scratch.",
        "loop.evaluate_every": "Steps between evaluations; 0 is a fifth of the run where that costs little, else the end only.",
        "loop.ema": "Decay of a moving average of the weights, which is then the finished model; 0 keeps none, None does so but "
        "in long runs from scratch.",
    }
    """What options of shared parts mean here, in place of their own texts."""

    images: Positional[Path]
    """Class folders (train/<class>/ and val/<class>/, or <class>/ alone), or a .csv or .jsonl list with path and label."""
    _: KW_ONLY
    model: Path | None = None
    """Pre-trained run folder or checkpoint to start from."""
    out: Path
    """Run folder to make or to continue."""
    recipe: str | None = None
    """Start from a recipe's values instead of the defaults; other options override them. `beitkit recipes` lists them."""
    scratch: bool = False
    """Start from fresh weights instead, with the network that `model` describes, or else `size`: what did pre-training buy?"""
    size: SizeName | None = None
    """Size of the network, from scratch without `model`."""
    patch: PositiveInt | None = None
    """Side of a patch in pixels, from scratch without `model`; None takes 16."""
    pooling: Pooling | None = None
    """What the head sees: mean is the average of the patches, grid the averages over the cells of a grid side by side, which
    keeps where something is; cls, from scratch without `model`, the class token. None is chosen."""
    pool_cells: PositiveInt | None = later(None)
    """Rows and columns of that grid; None takes one for each patch, at most 8."""
    head_init: Literal["zero", "probe"] | None = later(None)
    """The head's first weights: zero, nearly (the published way), or those of a linear probe of the frozen features (LP-FT),
    which spare a good start. None is chosen."""
    image_size: ImageSizeOrNone = None
    """Of the images in pixels: the side of squares, or height and width; positions are resized to it."""
    channels: Channels | None = later(None)
    """Channels of the images; None takes those of images that are neither gray nor RGB, else the checkpoint's, or 3."""
    value_range: ValueLimits | None = later(None)
    """Values of the files that are black and white, such as 0 4095; None takes the checkpoint's if it has any, else 0 to 255
    for images of 8 bits, and else finds them in the images."""
    val: Path | None = None
    """Labeled images to evaluate on, when they are not in a val/ folder beside train/."""
    folds: Annotated[int | None, Bounds(ge=2)] = later(None)
    """k-fold cross-validation: train this many networks, each validated on another part of the training images, in folders of
    their own below `out`; mean and spread are told."""
    fold: str | None = later(None)
    """Only one of these, as 1/5 to 5/5: what `folds` runs, for machines that share the work."""
    labels: PositiveInt | None = None
    """Train on this many labeled images only, as evenly over the classes as can be, drawn by `seed`."""
    balanced: bool = False
    """Show every class equally often, however many images it has."""
    compare: Path | None = None
    """Another fine-tuning run to set beside this one in the report (from scratch, say)."""
    drop_path: ShareBelowOne | None = None
    """Stochastic depth of the last block."""
    patience: PositiveInt | None = later(None)
    """Stop after this many evaluations in a row (`loop.evaluate_every`) that are not better, and take the best one's weights;
    None trains to the end and takes the last ones."""
    label_smoothing: ShareBelowOne = 0.1
    """Share of the target spread evenly over all classes."""
    crop_share: PositiveShare | None = None
    """Evaluation shows this share of the short side, cut out of the middle; stored with the model."""
    fit: Fit | None = later(None)
    """How evaluation brings images to the network's shape: crop shows the center, squeeze and letterbox (with bars) the whole;
    stored with the model. None takes what the checkpoint says."""
    augmentation: Annotated[str | None, Suppress] = later(None)
    """From Python only: a function that changes every decoded training image before it is cropped (`contracts.Augmentation`)."""
    freeze: Freeze = later(False)
    """Parts that stay as they are: patch_embed, positions, tokens, blocks, or of the blocks attn, mlp or norms. Without a value:
    everything but the head."""
    log: SinkName | None = later(None)
    """Send the numbers of the journal there as well (`pip install beitkit[NAME]`); nothing is sent without it."""
    json: Json = later(False)
    train: Annotated[TrainConfig, Flat] = TrainConfig(batch_size=None, lr=None)
    light: Annotated[LightConfig, Flat] = later(LightConfig())
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    view: ViewConfig = CHOSEN_VIEW
    optim: OptimConfig = OptimConfig(lr_batch=1024, min_lr=1e-6, warmup_epochs=None, clip=None)
    loop: LoopConfig = LoopConfig()
    speed: SpeedConfig = SpeedConfig()
    read: ReadConfig = ReadConfig()
    columns: ColumnsConfig = later(ColumnsConfig())

    def __post_init__(self) -> None:
        if self.model is not None and self.pooling == "cls":
            raise UserError("`pooling='cls'` is for a network from scratch without `model`; give mean or grid, or leave it out")
        if self.pool_cells is not None and self.pooling in ("mean", "cls"):
            raise UserError(f"`pool_cells` are those of `pooling='grid'`, and here is `pooling={self.pooling!r}`; leave one out")
        described = {"size": self.size, "patch": self.patch}
        check_start(self.model, self.scratch, self.network, described)
        check_light(self.light, self.freeze)
        _, folds = shard_of(self.fold, "fold")
        if self.fold is not None and folds < 2:
            raise UserError(f"`fold` must be one of at least two, such as 1/5, got {self.fold}")
        if self.folds is not None and self.fold is not None:
            raise UserError("`folds` runs every `fold`; leave one of the two out")
        if (self.folds is not None or self.fold is not None) and self.val is not None:
            raise UserError("`folds` validate on a part of the training images; leave `val` out")
        if self.folds is not None and self.compare is not None:
            raise UserError("`compare` needs the same validation images, and every one of `folds` has others; leave one out")
        if self.scratch:
            check_scratch(self.light, self.freeze)
