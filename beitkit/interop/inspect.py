"""Summarize a checkpoint without reading its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import ClassifierConfig, by
from beitkit.configs.tokenizer import TokenizerConfig
from beitkit.contracts import TensorRecord
from beitkit.errors import UserError
from beitkit.interop.kinds import TASKS, AnyNetworkConfig, kind_of_config
from beitkit.interop.reading.checkpoints import read_checkpoint
from beitkit.interop.reading.tokenizers import TokenizerCheckpoint, read_tokenizer
from beitkit.interop.reading.understood import Checkpoint


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """Summary of a checkpoint."""

    path: Path
    layout: str
    task: str
    """Masked-image modeling, classification, ..."""
    config: AnyNetworkConfig | TokenizerConfig
    parameters: int
    """Numbers in the tensors that are used."""
    tensors: tuple[TensorRecord, ...]
    """Every tensor of the file, by its official name; the ones that are not needed are dropped."""
    notes: tuple[str, ...]

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The pixels it expects; None for a discrete VAE, which takes pixels as they are."""
        return getattr(self.config, "preprocessing", None)

    def lines(self) -> list[tuple[str, str]]:
        """The summary as (name, value) pairs."""
        shown = [("path", str(self.path)), ("layout", self.layout), ("for", self.task), ("parameters", f"{self.parameters:,}")]
        if not isinstance(self.config, TokenizerConfig):
            backbone = self.config.backbone
            scale = "no LayerScale" if backbone.layer_scale is None else "LayerScale"
            scale += (", bias of keys" if backbone.key_bias else "") + (", inner norms" if backbone.sub_norm else "")
            positions = (
                [f"{backbone.relative_positions.replace('_', ' ')} relative"] if backbone.relative_positions != "none" else []
            )
            positions += ["absolute"] if backbone.absolute_positions else []
            shown += [
                (
                    "network",
                    f"{backbone.depth} blocks, width {backbone.width}, {backbone.heads} heads, MLP {backbone.hidden}, {scale}",
                ),
                ("images", f"{by(backbone.image_size)}, {backbone.channels} channels, patches of {by(backbone.patch)}"),
                ("positions", " and ".join(positions) or "none"),
            ]
        if self.preprocessing is not None:
            mean, std = self.preprocessing.mean, self.preprocessing.std
            fit = {"crop": "", "squeeze": ", squeezed", "letterbox": ", letterboxed"}[self.preprocessing.fit]
            filter = "" if self.preprocessing.filter == "bicubic" else f", {self.preprocessing.filter}"
            cut = f"crop share {self.preprocessing.crop_share:g}{fit}{filter}"
            shown.append(("pixels", f"mean {_listed(mean)}, deviation {_listed(std)}, {cut}"))
            if self.preprocessing.value_range is not None:
                shown.append(("values", ", ".join(f"{low:g} to {high:g}" for low, high in self.preprocessing.value_range)))
        for name in ("vocabulary", "features", "stride", "geometry"):
            value = getattr(self.config, name, None)
            if value is not None:
                shown.append((name, str(value)))
        classes: tuple[str, ...] | None = getattr(self.config, "classes", None)
        if classes:
            shown.append(("classes", f"{len(classes)}: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"))
        if isinstance(self.config, ClassifierConfig) and self.config != self.config.uncalibrated():
            decisions = self.config.thresholds
            decided = "" if decisions is None else f", thresholds {min(decisions):.3g} to {max(decisions):.3g}"
            shown.append(("calibrated", f"temperature {self.config.temperature:.4g}{decided}"))
        return [*shown, *(("note", note) for note in self.notes)]


def inspect_checkpoint(path: str | Path) -> CheckpointSummary:
    """Summarize the checkpoint at a path, network or tokenizer.

    Raises:
        UserError: if it is neither; the message is the one that loading it as a network gives.
    """
    found = read_any(Path(path))
    stored_tensors = found.tensors.items()
    records = [TensorRecord(name, stored.fate, stored.sources, stored.shape, stored.reason) for name, stored in stored_tensors]
    return CheckpointSummary(
        path=found.path,
        layout=found.layout,
        task=TASKS[kind_of_config(found.config)],
        config=found.config,
        parameters=sum(math.prod(stored.shape) for _, stored in stored_tensors if stored.dtype.is_floating_point),
        tensors=(*records, *found.skipped),
        notes=found.notes,
    )


def read_any(path: Path) -> Checkpoint | TokenizerCheckpoint:
    """What a path holds, network or tokenizer, understood and not read yet.

    Raises:
        UserError: if it is neither; the message is the one that loading it as a network gives.
    """
    try:
        return read_checkpoint(path)
    except UserError as problem:
        try:
            return read_tokenizer(path)
        except UserError:
            raise problem from None


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
