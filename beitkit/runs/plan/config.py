"""Options of `beitkit plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from beitkit.configs.bounds import Bounds, NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare, config
from beitkit.configs.data import ReadLimit
from beitkit.configs.gpus import GpuName
from beitkit.configs.model import ImageSize, SizeName
from beitkit.configs.parts import Json, Views
from beitkit.errors import UserError


@config()
class PlanRun:
    """Say what a run will take before it is begun: steps, operations, memory by part, time and cost.

    It plans pre-training, or what the recipe is for. Speeds are measured on this machine in some seconds, unless others
    are given. Options that are left out are the recipe's, or else those of beitkit pretrain.
    """

    images: PositiveInt
    """Training images."""
    recipe: str | None = None
    """What is run; `beitkit recipes` lists them. None plans pre-training by the options below."""
    gpus: PositiveInt = 1
    """Devices that share every step, one process on each."""
    size: SizeName | None = None
    """Size of the network; None takes the recipe's, or the one in its name."""
    patch: PositiveInt | None = None
    """Side of a patch, in pixels."""
    image_size: ImageSize | None = None
    """Of the images in pixels: the side of squares, or height and width."""
    batch_size: PositiveInt | None = None
    """Images per forward pass, on each device."""
    accumulate: PositiveInt | None = None
    """Forward passes per step, of all devices together; None takes the recipe's, or one of each device."""
    epochs: PositiveFloat | None = None
    """Passes over the images."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of `epochs`."""
    tokenizer: str = "dalle"
    """Pre-training: a published discrete VAE (dalle, beit), or one of your own (run folder or file)."""
    views: Views | None = None
    """Pre-training: stored views of an image; they are tokenized once, which takes that many epochs. None tokenizes always."""
    cached: bool = False
    """Pre-training: all tokens are in a cache (`beitkit tokenize`), and only evaluations compute any."""
    validation: PositiveInt | None = None
    """Fine-tuning and segmentation: images that an evaluation looks at; None leaves evaluations out."""
    classes: PositiveInt | None = None
    """Classes of fine-tuning (None takes 1000) and of segmentation (None takes 150)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto is what a run would take here, and bfloat16 for hardware that is described."""
    recompute: bool = False
    """The blocks' activations are not kept but computed again for the backward pass."""
    sharding: Literal["none", "full"] = "none"
    """none: every device has all weights, gradients and moments; full: they are divided among the devices."""
    workers: Annotated[int, Bounds(ge=-1)] = -1
    """Processes of each device that read images; -1 chooses by the cores, 0 reads in the main process."""
    threads: NonNegativeInt = 0
    """CPU threads while speeds are measured here; 0 takes the cores this process may use."""
    image_folder: Path | None = None
    """Folder of images whose reading is timed here; without it reading is left out."""
    device: GpuName | None = None
    """A GPU that need not be here, whose times are computed from counted operations and bytes, not measured."""
    rates: Path | None = None
    """bench.json of other hardware, as benchmarks/bench.py writes it, instead of measuring here."""
    tflops: PositiveFloat | None = None
    """The same in one number: 1e12 operations per second of a matrix product; needs `share`."""
    share: PositiveShare | None = None
    """Of that rate, what training reaches."""
    memory: PositiveFloat | None = None
    """GiB of memory on each device; None takes this machine's, where speeds are measured here, and that of `device`."""
    bandwidth: PositiveFloat | None = None
    """GB (1e9 bytes) per second that a device exchanges with the others; None leaves the exchange out."""
    price: PositiveFloat | None = None
    """Of a device for an hour."""
    json: Json = False
    read: ReadLimit = ReadLimit()

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"give `epochs` or `steps`, not both (got {self.epochs:g} epochs and {self.steps} steps)")
        said = [name for name in ("device", "rates", "tflops") if getattr(self, name) is not None]
        if len(said) > 1:
            raise UserError(f"`{said[0]}` and `{said[1]}` both say how fast the hardware is; give one")
        if self.device is not None and self.precision == "float32":
            raise UserError(
                "`device` is computed for bfloat16 alone; leave `precision` out, or describe the hardware by `tflops`"
            )
        if self.share is not None and self.rates is None and self.tflops is None:
            raise UserError("`share` is of the rate that `tflops` or `rates` give; give one of them")
        if self.tflops is not None and self.share is None:
            raise UserError("`tflops` is a rate that no training reaches; give the share that yours does as `share`, such as 0.4")
        if self.sharding == "full" and self.gpus == 1:
            raise UserError("`sharding='full'` divides among several devices; give `gpus`, or leave it out")
        if self.views is not None and self.cached:
            raise UserError("`cached` says that the tokens of all views are there; leave `views` out")
        if self.image_folder is not None and said:
            raise UserError(f"`image_folder` times reading on this machine; leave it out with `{said[0]}`")
