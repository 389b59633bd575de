"""A run of a second, to be killed: `python tiny_run.py FOLDER` trains a small network, alone or as a process of torchrun.

It is `fit` with everything that a run has (journal, checkpoints in the background, average of the weights, random numbers).
The last checkpoint is what runs are compared by.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.contracts import Batch, Loss
from beitkit.errors import Interrupted, ProcessLost
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.journal import Journal
from beitkit.train.loop import Training, fit
from beitkit.train.machine.runtime import start_runtime
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import make_schedule

STEPS, WIDTH = 40, 200
PAUSE = 0.01
"""Seconds that a batch takes, so that a kill finds the run in the middle."""
LOOP = LoopConfig(save_every=3, log_every=4, ema=0.9, accumulate=2)
OPTIM = OptimConfig(lr_scaling="none", warmup_steps=0)


class Tiny(nn.Module):
    """Two layers, and noise from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Least squares."""
        x = batch["x"]
        error = (self.layers(x) + 0.1 * torch.randn(len(x), 1) - x.sum(1, keepdim=True)).square().mean()
        return Loss(error, {"error": error.detach()})


def run(folder: Path, pause: float = PAUSE) -> None:
    """Train or continue."""
    runtime = start_runtime(MachineConfig(device="cpu", precision="float32", threads=1))

    def batches(first: int) -> Iterator[Batch]:
        number = first * runtime.world_size + runtime.rank
        while True:
            time.sleep(pause)
            yield {"x": torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(number))}
            number += runtime.world_size

    torch.manual_seed(0)
    tiny = Tiny()
    training = Training(
        schedule=make_schedule(TrainConfig(steps=STEPS, batch_size=4, lr=1e-3), LOOP, OPTIM, 100, default_epochs=1),
        loop=LOOP,
        optim=OPTIM,
        runtime=runtime,
        journal=Journal(folder / "journal.jsonl", stream=io.StringIO(), is_main=runtime.is_main),
        checkpoints=Checkpoints(folder / "checkpoints", runtime.processes),
    )
    fit(tiny, batches, parameter_groups(tiny, 0.01), training)


def exit_code(folder: Path, pause: float = PAUSE) -> int:
    """Train or continue, and say how it ended as the command line would."""
    try:
        run(folder, pause)
    except Interrupted as error:
        return error.exit_code
    except ProcessLost:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(Path(sys.argv[1])))
