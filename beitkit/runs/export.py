"""`beitkit export`: a network for other software, as a checkpoint or as a program that runs by itself."""

from __future__ import annotations

from pathlib import Path

from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.interop.save import save
from beitkit.runs.checkpoints import programs
from beitkit.runs.checkpoints.config import ExportRun


def run(config: ExportRun) -> Path:
    """Export, and say how far the result is from the network it was made from."""
    if config.out.exists():
        raise UserError(f"--out {config.out} is already there; choose another name, or remove it yourself")
    model = load(config.model, image_size=config.image_size)
    if config.format in ("onnx", "torch"):
        difference = programs.export(model, config.out, format=config.format)
        print(f"written: {config.out}; its outputs differ from the network's by at most {difference:.1e}")
    else:
        print(save(model, config.out, format=config.format).summary())
        print(f"written: {config.out}. Next: beitkit inspect {config.out}")
    return config.out
