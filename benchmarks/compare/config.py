"""What `python -m benchmarks.bench` takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from beitkit.configs.model import SizeName
from beitkit.configs.parts import DEFAULT_PATCH, Flat
from beitkit.configs.train import MachineConfig, SpeedConfig
from beitkit.errors import UserError, check_finite
from benchmarks.compare.workload import Workload

BenchJob = Literal["pretraining", "finetuning", "inference", "data"]
Rival = Literal["transformers", "timm"]


@dataclass(frozen=True)
class BenchRun:
    """Benchmark beitkit against transformers and timm: they take turns in one process, on one network."""

    _: KW_ONLY
    what: tuple[BenchJob, ...] = ("pretraining", "finetuning", "inference", "data")
    """Optimizer steps of pre-training and fine-tuning, inference, and the way from a JPEG file to the views of pre-training."""
    size: tuple[SizeName, ...] = ("base",)
    """Sizes of the network, one after the other."""
    image_size: int = 224
    """Side of the square images, in pixels."""
    patch: int = DEFAULT_PATCH
    """Side of a patch, in pixels."""
    batch_size: int = 8
    """Images per step."""
    rounds: int = 5
    """Turns that each candidate has."""
    turn: float = 1.0
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
        check_finite(self)
        for name in ("image_size", "patch", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.turn < 0:
            raise UserError(f"--turn must be 0 or more seconds, got {self.turn:g}")
        for name, values in (("what", self.what), ("size", self.size)):
            if not values or len(set(values)) != len(values):
                raise UserError(f"--{name} must name each at most once, and at least one, got {' '.join(values) or 'none'}")
        if self.profile and self.json:
            raise UserError("--profile writes a text, --json prints the timing; leave one of them out")
        if self.profile and set(self.what) == {"data"}:
            raise UserError("--profile shows the operators of networks, and --what data has none; name another one")

    def workload(self, size: SizeName) -> Workload:
        """The network and batch of a size."""
        return Workload(size=size, image_size=self.image_size, patch=self.patch, batch_size=self.batch_size)
