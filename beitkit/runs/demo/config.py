"""Options of `beitkit demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from beitkit.configs.bounds import config
from beitkit.configs.codec import later
from beitkit.configs.parts import Flat, Json
from beitkit.configs.train import MachineConfig


@config(kw_only=False)
class DemoRun:
    """Everything on a small bundled set of real images: tokenizer, pre-training, fine-tuning, verdict."""

    out: Path = Path("runs/demo")
    """Folder for the demo's images, runs, report.html and verdict.json; made or continued."""
    json: Json = later(False)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
