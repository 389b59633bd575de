"""Options of `python -m benchmarks.bench`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal

from beitkit.configs.bounds import Bounds, NonNegativeFloat, PositiveInt, config
from beitkit.configs.model import SizeName
from beitkit.configs.parts import DEFAULT_PATCH, Flat
from beitkit.configs.train import MachineConfig, SpeedConfig
from beitkit.errors import UserError
from benchmarks.compare.workload import Workload

BenchJob = Literal["pretraining", "finetuning", "inference", "data"]
Rival = Literal["transformers", "timm"]


@config(kw_only=False)
class BenchRun:
    """Benchmark beitkit against transformers and timm: they take turns in one process, on one network."""

    _: KW_ONLY
    what: Annotated[tuple[BenchJob, ...], Bounds(is_distinct=True)] = ("pretraining", "finetuning", "inference", "data")
    """Optimizer steps of pre-training and fine-tuning, inference, and the way from a JPEG file to the views of pre-training."""
    size: Annotated[tuple[SizeName, ...], Bounds(is_distinct=True)] = ("base",)
    """Sizes of the network, one after the other."""
    image_size: PositiveInt = 224
    """Side of the square images, in pixels."""
    patch: PositiveInt = DEFAULT_PATCH
    """Side of a patch, in pixels."""
    batch_size: PositiveInt = 8
    """Images per step."""
    rounds: PositiveInt = 5
    """Turns that each candidate has."""
    turn: NonNegativeFloat = 1.0
    """Seconds that a turn takes at least; one step where a step takes longer."""
    against: tuple[Rival, ...] | None = None
    """Other software on the same network and images; None takes what is installed."""
    memory: bool = True
    """Measure peak memory as well, of each in a process of its own."""
    profile: bool = False
    """Write the operators that take most of a step to profile.txt, instead of timing."""
    out: Path = Path("bench")
    """Folder for bench.json and bench.html, or profile.txt; older ones are replaced."""
    json: bool = False
    """Print the result as JSON on stdout."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    speed: SpeedConfig = SpeedConfig()

    def __post_init__(self) -> None:
        if self.profile and self.json:
            raise UserError("`profile` writes a text, `json` prints the timing; leave one of them out")
        if self.profile and set(self.what) == {"data"}:
            raise UserError("`profile` shows the operators of networks, and `what` data has none; name another one")

    def workload(self, size: SizeName) -> Workload:
        """The network and batch of a size."""
        return Workload(size=size, image_size=self.image_size, patch=self.patch, batch_size=self.batch_size)
