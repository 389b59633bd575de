"""What `machine/test_processes.py` starts twice: several runs of `fit` by two processes together, and by one for comparison.

Run as `python two_processes.py FOLDER` with torchrun's variables; each process leaves what it found in FOLDER/found-RANK.pt.
"""

from __future__ import annotations

import io
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from beitkit.configs.tokenizer import DVAEConfig, ReconstructConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.contracts import WHOLE, Batch, Evaluator, Loss, Share
from beitkit.errors import Interrupted, ProcessLost, UserError
from beitkit.objectives.reconstruct import Reconstruct
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal
from beitkit.train.loop import Best, Training, fit
from beitkit.train.machine.runtime import Runtime, start_runtime
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import make_schedule

ALONE = Runtime(torch.device("cpu"), None)
BATCH, STEPS = 3, 8
OPTIM = OptimConfig(lr_scaling="none", warmup_steps=0, clip=0.5)


class Toy(nn.Module):
    """Two layers and noise from torch's generator; keeps which passes it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        self.seen: list[int] = []

    def forward(self, batch: Batch, progress: float) -> Loss:
        x = batch["images"]
        self.seen.append(int(batch["number"]))
        noise = 0.1 * torch.randn(len(x), 1)
        error = (self.layers(x) + noise - x.sum(1, keepdim=True)).square().mean()
        return Loss(error + batch["poison"], {"error": error.detach()})


def numbered(number: int, *, is_poisoned: bool = False, shape: tuple[int, ...] = (BATCH, 3)) -> Batch:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(number))
    poison = torch.tensor(math.nan if is_poisoned else 0.0)
    return {"images": images, "number": torch.tensor(number), "poison": poison}


def run(
    out: Path,
    runtime: Runtime,
    loop: LoopConfig,
    *,
    objective: nn.Module | None = None,
    cut_at: int | None = None,
    poisoned: int | None = None,
    signaled: int | None = None,
    shape: tuple[int, ...] = (BATCH, 3),
    evaluators: Sequence[Evaluator] = (),
    best: Best | None = None,
) -> nn.Module:
    """Train a toy, or something else on images of a shape; passes of the numbers given go wrong."""
    torch.manual_seed(0)
    objective = Toy() if objective is None else objective

    def batches(first: int) -> Iterator[Batch]:
        number = first * runtime.world_size + runtime.rank
        while True:
            if cut_at is not None and number >= cut_at:
                raise ConnectionError
            if number == signaled:
                os.kill(os.getpid(), signal.SIGTERM)
            yield numbered(number, is_poisoned=number == poisoned, shape=shape)
            number += runtime.world_size

    loop = loop.shared_by(runtime.world_size)
    try:
        fit(
            objective,
            batches,
            parameter_groups(objective, 0.01),
            Training(
                schedule=make_schedule(TrainConfig(steps=STEPS, batch_size=BATCH, lr=0.05), loop, OPTIM, 40, default_epochs=1),
                loop=loop,
                optim=OPTIM,
                runtime=runtime,
                journal=Journal(out / "journal.jsonl", stream=io.StringIO(), is_main=runtime.is_main),
                checkpoints=Checkpoints(out / "checkpoints", runtime.processes),
            ),
            evaluators,
            best,
        )
    except ConnectionError:
        assert cut_at is not None
    return objective


def tokenizer() -> Reconstruct:
    torch.manual_seed(1)
    config = DVAEConfig(geometry="light", vocabulary=24, hidden=16, codebook_dim=8, stride=4, channels=1)
    return Reconstruct(DiscreteVAE(config), ReconstructConfig(revive_every=5, dead_share=0.5))


class Shared:
    """A mean over batches of different sizes, whose last bits tell in which order it was added up; one of them cannot be read."""

    name = "val"

    def __init__(self, toy: Toy, *, is_broken: bool = False) -> None:
        self.toy = toy
        self.is_broken = is_broken

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        parts = share.together(self._error(number) for number in range(7)[share.rank :: share.of])
        if parts is not None:
            yield "error", sum(error for error, _ in parts) / sum(count for _, count in parts)
            yield "batches", float(len(parts))

    def _error(self, number: int) -> tuple[float, int]:
        if self.is_broken and number == 5:
            raise UserError("image 5 cannot be read")
        x = numbered(1000 + number, shape=(number + 1, 3))["images"]
        return (self.toy.layers(x) - x.sum(1, keepdim=True)).square().sum().item(), len(x)


def evaluated(out: Path, runtime: Runtime, *, is_broken: bool = False) -> None:
    """A run that is judged twice."""
    torch.manual_seed(0)
    toy = Toy()
    loop = LoopConfig(accumulate=2, log_every=0, save_every=0, evaluate_every=4, ema=0.9)
    run(out, runtime, loop, objective=toy, evaluators=[Shared(toy, is_broken=is_broken)])


def result(objective: nn.Module) -> dict:
    return {"state": objective.state_dict(), "seen": objective.seen if isinstance(objective, Toy) else []}


def main(folder: Path) -> None:
    found: dict[str, object] = {}
    four = LoopConfig(accumulate=4, log_every=1, save_every=0, ema=0.9)
    codes = {"loop": LoopConfig(accumulate=2, log_every=1, save_every=3), "shape": (4, 1, 16, 16)}
    if os.environ["RANK"] == "0":  # for comparison, before there is a group
        found["one"] = result(run(folder / "one", ALONE, four))
        found["codes of one"] = result(run(folder / "codes-one", ALONE, objective=tokenizer(), **codes))
        found["poisoned one"] = result(run(folder / "poisoned-one", ALONE, four, poisoned=9))
        evaluated(folder / "evaluated-one", ALONE)
    runtime = start_runtime(MachineConfig(device="cpu", precision="float32", threads=1))
    found["two"] = result(run(folder / "two", runtime, four))
    found["codes of two"] = result(run(folder / "codes-two", runtime, objective=tokenizer(), **codes))
    found["poisoned two"] = result(run(folder / "poisoned-two", runtime, four, poisoned=9))

    evaluated(folder / "evaluated-two", runtime)
    try:
        evaluated(folder / "broken", runtime, is_broken=True)
    except UserError as error:
        found["broken"] = str(error)
    torch.manual_seed(5)
    toy = Toy()
    share = Share(runtime.rank, runtime.world_size, runtime.processes.gather)
    found["evaluated"] = [list(Shared(toy).run(share)), list(Shared(toy).run())]

    saving = LoopConfig(accumulate=4, log_every=1, save_every=1, ema=0.9)
    legs = [result(run(folder / "legs", runtime, saving, cut_at=12))["seen"]]
    runtime.processes.barrier()
    if runtime.is_main:
        legs.append(result(run(folder / "legs", ALONE, saving, cut_at=20))["seen"])
    runtime.processes.barrier()
    last = result(run(folder / "legs", runtime, saving))
    found["legs"] = [*legs, last["seen"]]
    found["continued"] = last

    try:
        run(folder / "stopped", runtime, four, signaled=13)
    except Interrupted as error:
        found["stopped"] = (str(error), error.exit_code)

    shared = RunFolder(folder / "run", "tokenizer", MachineConfig(), runtime.processes)
    shared.pin(images="same")
    try:
        shared.pin(images=f"other {runtime.rank}")
    except UserError as error:
        found["pinned"] = str(error)

    if not runtime.is_main:
        torch.save(found, folder / "found-1.pt")
        runtime.processes.barrier()
        os._exit(3)
    runtime.processes.barrier()
    try:
        run(folder / "lost", runtime, four)
    except ProcessLost as error:
        found["lost"] = str(error)
    torch.save(found, folder / "found-0.pt")
    os._exit(0)  # the group has lost a member: there is nothing to leave in good order


if __name__ == "__main__":
    main(Path(sys.argv[1]))
