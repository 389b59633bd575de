"""What saving costs a step loop: the same steps with a checkpoint every so often, written beside training, at once, and never.

    python -m benchmarks.saving --steps 300 --save-every 50 --width 512 --rounds 3

The three take turns; stated are the median of the seconds of each, and what saving adds. A save should cost under 2% at the
default of one in 500 steps: scale what is added by 500 / `--save-every`.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.contracts import Batch, Loss
from beitkit.train import loop
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.journal import Journal
from beitkit.train.loop import Training, fit
from beitkit.train.machine.runtime import Runtime
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import make_schedule


class Stack(nn.Module):
    """Eight square layers: weights, gradients and moments as a Transformer has them, and little else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(8)))

    def forward(self, batch: Batch, progress: float) -> Loss:
        return Loss(self.layers(batch["x"]).square().mean(), {})


def seconds(options: argparse.Namespace, save_every: int, copied: int, folder: Path) -> float:
    """How long the steps take with a save every so often; 0 saves at the end only, which is not counted."""
    torch.manual_seed(0)
    stack = Stack(options.width)
    batch = {"x": torch.randn(options.batch_size, options.width).to(options.device)}
    times: list[float] = []

    def stream(first: int) -> Iterator[Batch]:
        while True:
            times.append(time.perf_counter())
            yield batch

    loop.COPIED_ON_CPU = copied
    settings, optim = LoopConfig(save_every=save_every), OptimConfig(lr_scaling="none", warmup_steps=0)
    length = TrainConfig(steps=options.steps + 1, batch_size=options.batch_size, lr=1e-4)
    training = Training(
        schedule=make_schedule(length, settings, optim, 10_000, default_epochs=1),
        loop=settings,
        optim=optim,
        runtime=Runtime(torch.device(options.device), None),
        journal=Journal(folder / "journal.jsonl", stream=io.StringIO()),
        checkpoints=Checkpoints(folder / "checkpoints"),
    )
    stack.to(options.device)
    fit(stack, stream, parameter_groups(stack, 0.05), training)
    return times[options.steps] - times[0]


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is measured")
    options = parser.parse_args()
    ways = {"never": (0, 2**40), "beside training": (options.save_every, 2**40), "at once": (options.save_every, -1)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (save_every, copied) in ways.items():
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                found[name].append(seconds(options, save_every, copied, Path(folder)))
    never = statistics.median(found["never"])
    for name, values in found.items():
        middle = statistics.median(values)
        added = (middle / never - 1) * options.save_every / 500
        print(f"{name:16} {middle:8.3f} s ({min(values):.3f} to {max(values):.3f}), at one in 500 steps {added:+.2%}")


if __name__ == "__main__":
    main()
