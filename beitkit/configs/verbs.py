"""What each verb of the command line takes; the Python functions of the same names take the same fields.

Only this package is imported for `--help` and for mistyped options, so nothing here may import torch.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from beitkit.configs.data import MaskConfig, ReadConfig, ViewConfig
from beitkit.configs.model import DVAEConfig, ReconstructConfig, RelativePositions, SizeName
from beitkit.configs.train import DeviceConfig, LoopConfig, OptimConfig

Flat = arg(name="")
"""Options of this part are written without a prefix: `--lr`, not `--optim.lr`."""

Normalization = Literal["inception", "imagenet"]


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
    loop: Annotated[LoopConfig, Flat] = field(default_factory=lambda: LoopConfig(batch_size=32))
    optim: Annotated[OptimConfig, Flat] = field(
        default_factory=lambda: OptimConfig(lr=1e-3, lr_batch=64, min_lr=1e-5, weight_decay=1e-4, warmup_epochs=1, clip=1.0)
    )
    device: Annotated[DeviceConfig, Flat] = DeviceConfig()
    read: Annotated[ReadConfig, Flat] = ReadConfig()
    dvae: DVAEConfig = DVAEConfig(vocabulary=1024)
    reconstruct: ReconstructConfig = ReconstructConfig()
    view: ViewConfig = ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.0)


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
    """Network size."""
    image_size: int = 224
    """Side of the square pictures, in pixels."""
    patch: int = 16
    """Side of a patch, in pixels."""
    positions: RelativePositions = "shared"
    """Relative position bias: one table for all blocks, one per block, or none (then learned absolute positions)."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    layer_scale: float | None = None
    """First value of LayerScale; None takes the size's usual one, 0 leaves it out."""
    normalization: Normalization = "imagenet"
    """Pixel statistics: imagenet (the original's IN-1k runs) or inception (0.5 and 0.5, its IN-22k runs)."""
    loop: Annotated[LoopConfig, Flat] = LoopConfig()
    optim: Annotated[OptimConfig, Flat] = OptimConfig()
    device: Annotated[DeviceConfig, Flat] = DeviceConfig()
    read: Annotated[ReadConfig, Flat] = ReadConfig()
    mask: MaskConfig = MaskConfig()
    view: ViewConfig = ViewConfig()


@dataclass(frozen=True)
class FinetuneRun:
    """Fine-tune for classification, from a pre-trained model or from scratch in the same set-up."""

    images: Positional[Path]
    """Class folders (train/<class>/ and val/<class>/, or <class>/ alone), or a .csv with path and label."""
    _: KW_ONLY
    out: Path
    """Run folder to make or to continue."""
    model: Path
    """Pre-trained run folder or checkpoint to start from."""
    scratch: bool = False
    """Start from fresh weights instead, with the network that --model describes: what did pre-training buy?"""
    val: Path | None = None
    """Labelled pictures to evaluate on, when they are not in a val/ folder beside train/."""
    labels: int | None = None
    """Train on this many labelled pictures only, the same number of every class, drawn by --seed."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    compare: Path | None = None
    """Another fine-tuning run to set beside this one in the report (from scratch, say)."""
    loop: Annotated[LoopConfig, Flat] = field(default_factory=lambda: LoopConfig(batch_size=64))
    optim: Annotated[OptimConfig, Flat] = field(
        default_factory=lambda: OptimConfig(lr=4e-3, lr_batch=1024, min_lr=1e-6, warmup_epochs=20, layer_decay=0.65, clip=None)
    )
    device: Annotated[DeviceConfig, Flat] = DeviceConfig()
    read: Annotated[ReadConfig, Flat] = ReadConfig()
    view: ViewConfig = ViewConfig()


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
    """At most this many training pictures, the same number of every class."""
    batch_size: int = 64
    seed: int = 0
    json: bool = False
    """Print the result as JSON on stdout."""
    device: Annotated[DeviceConfig, Flat] = DeviceConfig()
    read: Annotated[ReadConfig, Flat] = ReadConfig()


@dataclass(frozen=True)
class EvaluateRun:
    """Measure a fine-tuned classifier on labelled pictures."""

    images: Positional[Path]
    """Class folders (the val/ part where there is one), or a .csv with path and label."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint of a classifier."""
    batch_size: int = 64
    json: bool = False
    """Print the result as JSON on stdout."""
    device: Annotated[DeviceConfig, Flat] = DeviceConfig()
    read: Annotated[ReadConfig, Flat] = ReadConfig()


@dataclass(frozen=True)
class DemoRun:
    """Everything on a small bundled set of real pictures: tokenizer, pre-training, fine-tuning, verdict."""

    out: Path = Path("runs/demo")
    """Folder for the demo's pictures, runs, report.html and verdict.json; made or continued."""
    device: Annotated[DeviceConfig, Flat] = DeviceConfig()
