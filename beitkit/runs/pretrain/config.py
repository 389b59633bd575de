"""Options of `beitkit pretrain`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, Suppress

from beitkit.configs.bounds import NonNegativeInt, PositiveInt, config
from beitkit.configs.codec import later
from beitkit.configs.data import Channels, ImageColumnConfig, MaskConfig, ReadConfig, ValueLimits, ViewConfig
from beitkit.configs.model import ImageSizeOrNone, SizeName
from beitkit.configs.parts import Flat, Json, NetworkConfig, Views
from beitkit.configs.train import (
    Freeze,
    LightConfig,
    LoopConfig,
    MachineConfig,
    OptimConfig,
    SinkName,
    SpeedConfig,
    TrainConfig,
    check_given,
    check_light,
)
from beitkit.errors import UserError


@config(kw_only=False)
class PretrainRun:
    """Pre-train a vision Transformer on unlabeled images: predict the visual tokens of masked patches."""

    TEXTS: ClassVar[dict[str, str]] = {
        "epochs": "Passes over the images; None takes 300, or 30 where `init` goes on from a network.",
        "lr": "Peak learning rate at a batch of `optim.lr_batch` images, scaled to yours; None takes 1.5e-3, or with `init` what "
        "suits a network that has learned already.",
        "optim.warmup_epochs": "Linear warm-up from 0, in epochs; None takes 10, or a tenth of the run with `init`.",
        "optim.layer_decay": "Each block below the top learns this much slower than the one above it; None takes 1, and with "
        "`init` chooses.",
        "loop.ema": "Decay of a moving average of the weights, which is then the finished model; 0 and None keep none.",
        "loop.evaluate_every": "Steps between evaluations; 0 evaluates at the end only, or ten times with `init`.",
    }
    """What options of shared parts mean here, in place of their own texts."""

    images: Positional[Path]
    """Folder of images (nested or flat), a list of files (.txt, .csv, .jsonl), tar shards, Parquet files, or an .index."""
    _: KW_ONLY
    tokenizer: Path | None = None
    """Tokenizer: a run folder of `beitkit tokenizer`, or a file that holds one. Needed for `target='tokens'`."""
    out: Path
    """Run folder to make or to continue."""
    recipe: str | None = None
    """Start from a recipe's values instead of the defaults; other options override them. `beitkit recipes` lists them."""
    init: Path | None = later(None)
    """Go on from this network instead of fresh weights: a run folder or checkpoint, also a classifier or a segmenter. Its network
    is taken as it is; milder rates are chosen, and the best evaluation becomes the finished model."""
    labels: Path | None = later(None)
    """Labeled images, as for fine-tuning, by which the blocks are judged along the way: nearest neighbors and a linear probe, on
    a fifth of (at most 2,000 of) the training images. Nothing is learned from them."""
    head_steps: NonNegativeInt | None = later(None)
    """With `init`, steps for which a fresh head learns alone, the rest of the network kept as it is; None takes a tenth of the
    run, at most 1,000."""
    size: SizeName | None = None
    """Size of the network; None takes base, or the one of `init`."""
    image_size: ImageSizeOrNone = None
    """Of the images in pixels: the side of squares, or height and width; None takes 224, or that of `init`, whose positions are
    resized for another."""
    patch: PositiveInt | None = None
    """Side of a patch, in pixels; None takes 16, or that of `init`."""
    target: Literal["tokens", "pixels"] = "tokens"
    """What is predicted: visual tokens, or as an ablation the patch's pixels, normalized like the input (mean squared error)."""
    recover: Literal["masked", "all"] = "masked"
    """Which patches are predicted: the masked ones, or as an ablation all."""
    cls_branch: PositiveInt | None = None
    """BEiT v2's second prediction through the class token: after how many blocks the patches are handed to it (v2: 9 of 12, 21
    of 24); None leaves it out."""
    views: Views | None = None
    """Stored views of an image, all of which it shows before one comes again (masks are always fresh): their tokens are computed
    once and kept. None shows another view every epoch, and computes its tokens."""
    tokens: Path | None = None
    """Token cache that `beitkit tokenize` made (or another run, in its folder tokens); None keeps one in the run folder where
    `views` is given."""
    channels: Channels | None = None
    """Channels of the images: 1 (gray), 3 (color) or another number; None takes the tokenizer's, or where there is none those of
    images that are neither gray nor RGB, else 3."""
    value_range: ValueLimits | None = later(None)
    """Values of the files that are black and white, such as 0 4095; None takes the tokenizer's, or where there is
    none finds them as `beitkit tokenizer` does."""
    augmentation: Annotated[str | None, Suppress] = later(None)
    """From Python only: a function that changes every decoded training image before it is cropped (`contracts.Augmentation`)."""
    freeze: Freeze = later(False)
    """Parts that stay as they are: patch_embed, positions, tokens, blocks, or of the blocks attn, mlp or norms. Without a value:
    everything but the head."""
    log: SinkName | None = later(None)
    """Send the numbers of the journal there as well (`pip install beitkit[NAME]`); nothing is sent without it."""
    json: Json = later(False)
    train: Annotated[TrainConfig, Flat] = TrainConfig(lr=None)
    light: Annotated[LightConfig, Flat] = later(LightConfig())
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    network: NetworkConfig = NetworkConfig()
    mask: MaskConfig = MaskConfig()
    view: ViewConfig = ViewConfig()
    optim: OptimConfig = OptimConfig(warmup_epochs=None)
    loop: LoopConfig = LoopConfig()
    speed: SpeedConfig = SpeedConfig()
    read: ReadConfig = ReadConfig()
    columns: ImageColumnConfig = later(ImageColumnConfig())

    def __post_init__(self) -> None:
        check_given(self.train, self.optim, ("lr", "optim.warmup_epochs"))
        if self.head_steps is not None and self.init is None:
            raise UserError("`head_steps` is for a fresh head on the network of `init`; leave it out, or give `init`")
        check_light(self.light, self.freeze)
        if self.init is None and (self.light != LightConfig() or self.freeze is True):
            raise UserError(
                "`train_blocks`, `lora_rank` and `freeze` of all keep the weights of `init`, and fresh ones are not worth "
                "keeping; give `init`, or leave them out"
            )
        if self.mask.kind == "none" and self.recover == "masked":
            raise UserError("`mask.kind='none'` hides nothing, so nothing masked can be predicted; give `recover='all'` with it")
        if self.target == "pixels" and self.tokenizer is not None:
            raise UserError("`target='pixels'` uses no tokenizer; leave `tokenizer` out, or predict its tokens")
        if self.target == "pixels" and (self.views is not None or self.tokens is not None):
            raise UserError("`target='pixels'` has no tokens to store; leave `views` and `tokens` out")
        if self.cls_branch is not None and (self.target == "pixels" or self.recover == "all"):
            raise UserError(
                f"`cls_branch` predicts the tokens of masked patches a second time; "
                f"leave it out, or give `target='tokens'` and `recover='masked'` (got {self.target} and {self.recover})"
            )
