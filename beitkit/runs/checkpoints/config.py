"""Options of `beitkit inspect`, `show-load`, `convert` and `export`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path

from tyro.conf import Positional

from beitkit.configs.bounds import PositiveInt, config
from beitkit.configs.codec import later
from beitkit.configs.model import ImageSize
from beitkit.configs.parts import CheckpointFormat, Json, ProgramFormat, Task


@config(kw_only=False)
class InspectRun:
    """What is this checkpoint? Format, task, network, positions, pixels, classes."""

    path: Positional[Path]
    """A run folder, a Hugging Face or timm folder, or a file: .pth, .pt, .bin, .pkl, .safetensors; or hf://USER/NAME."""
    _: KW_ONLY
    verbose: bool = False
    """Name every tensor."""
    json: Json = False


@config(kw_only=False)
class ShowLoadRun:
    """What becomes of every tensor when a checkpoint is loaded: kept, split, expanded, resized, dropped, fresh."""

    path: Positional[Path]
    """What `beitkit.load` would be given."""
    _: KW_ONLY
    task: Task | None = None
    """What the network is wanted for, if not for what it was saved."""
    num_classes: int | None = None
    """How many classes; other than the file's means a fresh head."""
    vocabulary: PositiveInt | None = None
    """How many visual tokens, for `task='masked'`; other than the file's means a fresh head."""
    image_size: ImageSize | None = None
    """Of the images in pixels: the side of squares, or height and width; positions are resized to it."""
    json: Json = later(False)


@config(kw_only=False)
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
    json: Json = later(False)


@config(kw_only=False)
class ExportRun:
    """Export a model and verify that its outputs match."""

    model: Path
    """Run folder or checkpoint."""
    format: CheckpointFormat | ProgramFormat
    """onnx and torch (.pt2) are programs that run by themselves; the others are checkpoints."""
    out: Path
    """What to write; must not be there yet."""
    image_size: ImageSize | None = None
    """Of the images in pixels, the side of squares or height and width, if not the checkpoint's."""
    push: str | None = None
    """Upload what was written to the Hugging Face Hub as this model, USER/NAME; a new one is private. None sends nothing."""
    json: Json = later(False)
