"""What each verb of the command line takes; the Python functions of the same names take the same fields.

Fields directly in a verb, and those of its `Flat` parts, are what people change; the nested rest is written with a prefix
(`--optim.clip`) and shown after them. Only this package is imported for `--help` and for mistyped options, so nothing here
may import torch.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from beitkit.configs.data import IMAGENET, INCEPTION, MaskConfig, Preprocessing, ReadConfig, ViewConfig
from beitkit.configs.model import DVAEConfig, ReconstructConfig, RelativePositions, SizeName
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.errors import UserError, check_finite

Flat = arg(name="")
"""Options of this part are written without a prefix: `--lr`, not `--train.lr`."""


@dataclass(frozen=True)
class TokenizerRun:
    """Train a discrete VAE on your pictures, so that each patch gets a visual token."""

    images: Positional[Path]
    """Folder of pictures (nested or flat), or a .txt/.csv list of files."""
    _: KW_ONLY
    out: Path
    """Run folder to make or to continue."""
    image_size: int = 112
    """Side of the square pictures it is trained on, in pixels; it can encode other sizes later."""
    train: Annotated[TrainConfig, Flat] = TrainConfig(lr=5e-3)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    dvae: DVAEConfig = DVAEConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    view: ViewConfig = ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.0)
    optim: OptimConfig = OptimConfig(lr_batch=64, weight_decay=1e-4, warmup_epochs=1.0, clip=1.0)
    loop: LoopConfig = LoopConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        if self.image_size < self.dvae.stride:
            raise UserError(f"--image-size must be at least --dvae.stride, got {self.image_size} and {self.dvae.stride}")
        if self.optim.layer_decay not in (None, 1.0):
            raise UserError(f"--optim.layer-decay {self.optim.layer_decay:g} has no meaning for a tokenizer; leave it out")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The details of the network that is pre-trained."""

    positions: RelativePositions = "shared"
    """Relative position bias: one table for all blocks, one per block, or none (then learned absolute positions)."""
    layer_scale: float | None = None
    """First value of LayerScale; None takes the size's usual one, 0 leaves it out."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    normalization: Literal["inception", "imagenet"] = "imagenet"
    """Pixel statistics: imagenet (the original's IN-1k runs) or inception (0.5 and 0.5, its IN-22k runs)."""

    def __post_init__(self) -> None:
        check_finite(self)
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--network.drop-path must lie in [0, 1), got {self.drop_path}")
        if self.layer_scale is not None and self.layer_scale < 0:
            raise UserError(f"--network.layer-scale must not be negative, got {self.layer_scale}")

    @property
    def preprocessing(self) -> Preprocessing:
        """What the finished model expects of its pictures."""
        return IMAGENET if self.normalization == "imagenet" else INCEPTION


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
        if min(self.image_size, self.patch) < 1:
            raise UserError(f"--image-size and --patch must be at least 1, got {self.image_size} and {self.patch}")


@dataclass(frozen=True)
class FinetuneRun:
    """Fine-tune for classification, from a pre-trained model or from scratch in the same set-up."""

    images: Positional[Path]
    """Class folders (train/<class>/ and val/<class>/, or <class>/ alone), or a .csv with path and label."""
    _: KW_ONLY
    model: Path
    """Pre-trained run folder or checkpoint to start from."""
    out: Path
    """Run folder to make or to continue."""
    scratch: bool = False
    """Start from fresh weights instead, with the network that --model describes: what did pre-training buy?"""
    val: Path | None = None
    """Labelled pictures to evaluate on, when they are not in a val/ folder beside train/."""
    labels: int | None = None
    """Train on this many labelled pictures only, as evenly over the classes as can be, drawn by --seed."""
    compare: Path | None = None
    """Another fine-tuning run to set beside this one in the report (from scratch, say)."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    train: Annotated[TrainConfig, Flat] = TrainConfig(lr=4e-3)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    view: ViewConfig = ViewConfig()
    optim: OptimConfig = OptimConfig(lr_batch=1024, min_lr=1e-6, warmup_epochs=20.0, clip=None)
    loop: LoopConfig = LoopConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        check_finite(self)
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--drop-path must lie in [0, 1), got {self.drop_path}")
        if self.labels is not None and self.labels < 1:
            raise UserError(f"--labels must be at least 1, got {self.labels}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label-smoothing must lie in [0, 1), got {self.label_smoothing}")


@dataclass(frozen=True)
class ProbeRun:
    """Judge frozen features: nearest neighbors, and a linear probe on every block."""

    images: Positional[Path]
    """Class folders with train/ and val/, or a .csv with path and label."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint to judge."""
    val: Path | None = None
    """Labelled pictures to report on, when they are not in a val/ folder beside train/."""
    out: Path | None = None
    """Where to write probe.json and report.html; nothing is written without it."""
    limit: int = 10_000
    """At most this many training pictures, as evenly over the classes as can be."""
    batch_size: int = 64
    """Pictures per forward pass."""
    seed: int = 0
    """Draws the pictures when there are more than --limit, and the validation part where there is none."""
    json: bool = False
    """Print the result as JSON on stdout."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        _check_batch(self.batch_size)
        if self.limit < 1:
            raise UserError(f"--limit must be at least 1, got {self.limit}")


@dataclass(frozen=True)
class EvaluateRun:
    """Measure a fine-tuned classifier on labelled pictures."""

    images: Positional[Path]
    """Class folders (the val/ part where there is one), or a .csv with path and label."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint of a classifier."""
    batch_size: int = 64
    """Pictures per forward pass."""
    json: bool = False
    """Print the result as JSON on stdout."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        _check_batch(self.batch_size)


CheckpointFormat = Literal["native", "microsoft", "huggingface", "timm"]
ProgramFormat = Literal["onnx", "torch"]
Task = Literal["masked", "classify", "segment"]


@dataclass(frozen=True)
class InspectRun:
    """What is this checkpoint? Format, task, network, positions, pixels, classes."""

    path: Positional[Path]
    """A run folder, a Hugging Face or timm folder, or a file: .pth, .pt, .bin, .pkl, .safetensors."""
    _: KW_ONLY
    verbose: bool = False
    """Name every tensor."""
    json: bool = False
    """Print the network's description as JSON."""


@dataclass(frozen=True)
class ShowLoadRun:
    """What becomes of every tensor when a checkpoint is loaded: kept, split, expanded, resized, dropped, fresh."""

    path: Positional[Path]
    """What `beitkit.load` would be given."""
    _: KW_ONLY
    task: Task | None = None
    """What the network is wanted for, if not for what it was saved."""
    num_classes: int | None = None
    """How many classes; other than the file's means a fresh head."""
    image_size: int | None = None
    """Side of the pictures; positions are resized to it."""


@dataclass(frozen=True)
class ConvertRun:
    """Write a checkpoint in another format; there and back is the identity, tensor by tensor."""

    path: Positional[Path]
    """Checkpoint in any format that `beitkit inspect` knows."""
    _: KW_ONLY
    to: CheckpointFormat
    """microsoft is the official code's (a .pth file); the others are folders."""
    out: Path
    """What to write; must not be there yet."""
    dry_run: bool = False
    """Only say what would become of every tensor."""
    verbose: bool = False
    """Print the whole table after writing."""


@dataclass(frozen=True)
class ExportRun:
    """Give a network to other software, checked before it is called done."""

    model: Path
    """Run folder or checkpoint."""
    format: CheckpointFormat | ProgramFormat
    """onnx and torch (.pt2) are programs that run by themselves; the others are checkpoints."""
    out: Path
    """What to write; must not be there yet."""
    image_size: int | None = None
    """Side of the pictures, if not the checkpoint's."""


@dataclass(frozen=True)
class DemoRun:
    """Everything on a small bundled set of real pictures: tokenizer, pre-training, fine-tuning, verdict."""

    out: Path = Path("runs/demo")
    """Folder for the demo's pictures, runs, report.html and verdict.json; made or continued."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()


def _check_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")
