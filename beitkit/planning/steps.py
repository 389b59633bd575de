"""Real training steps on noise images, through the code of a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from beitkit.configs.train import OptimConfig
from beitkit.contracts import Batch
from beitkit.data.stream import tokenized
from beitkit.nn.blocks import set_recompute
from beitkit.planning.workload import Workload
from beitkit.train.machine.runtime import Runtime, StopRequest
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import Schedule
from beitkit.train.step import StepResult, Trainer

LENGTH = 1_000_000
"""Steps of the schedule whose beginning is run."""
RATE = 1e-5
"""So low that training on noise stays finite."""


class NoiseSteps:
    """A fresh network and what trains it; every call makes a step on other noise."""

    def __init__(self, workload: Workload, images: int, runtime: Runtime, *, recompute: bool, tokenizes: bool) -> None:
        """Steps of this many images; `tokenizes` computes their tokens each time, where there is a tokenizer."""
        objective = workload.objective().train()
        set_recompute(objective, recompute)
        optim = OptimConfig(warmup_epochs=0.0)
        schedule = Schedule(LENGTH, 0, images, LENGTH, RATE, RATE, seed=0)
        groups = parameter_groups(objective, optim.weight_decay)
        self.trainer = Trainer(objective, groups, schedule=schedule, optim=optim, runtime=runtime, accumulation_steps=1)
        self._stream = _batches(workload, images, runtime, tokenizes=tokenizes and workload.tokenizer is not None)
        self._numbers, self._stop = itertools.count(), StopRequest()

    def __call__(self) -> StepResult:
        """The next step."""
        trainer, done = self.trainer, next(self._numbers)
        losses = trainer.forward_backward(self._stream, done)
        return trainer.update(losses, trainer.clip(), done, self._stop)


def _batches(workload: Workload, images: int, runtime: Runtime, *, tokenizes: bool) -> Iterator[Batch]:
    device = runtime.device
    if not tokenizes:
        while True:
            yield workload.batch(images, device)
    encoder = workload.encoder(device, runtime.autocast)
    stream = (workload.batch(images, device) | {"token_images": workload.token_images(images, device)} for _ in itertools.count())
    yield from tokenized(stream, encoder, workload.grid)
