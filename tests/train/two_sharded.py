"""What `test_parallel.py` starts twice: the same run with whole and with sharded weights, cut, continued and stored.

Run as `python two_sharded.py FOLDER` with torchrun's variables; the main process leaves what it found in FOLDER/found.pt.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import ALONE, numbered, run

from beitkit.configs.train import LoopConfig, MachineConfig
from beitkit.contracts import WHOLE, Batch, Loss, ShardingUnit, Share
from beitkit.errors import Interrupted, UserError
from beitkit.train.loop import Best
from beitkit.train.machine.runtime import Runtime, start_runtime

SEEN: list[int] = []
"""The passes that this process made since the list was cleared."""
USED: set[str] = set()
"""Types of the matrices, and of what else units have, that forward passes used since the set was cleared."""


class Unit(ShardingUnit):
    """A residual layer; five rows are not shared evenly by two processes, and one row not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(1, 1, 5))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        USED.update(f"{name} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in self.named_parameters())
        return x + self.scale[0] * torch.tanh(self.layer(x) + bias)


class Tower(nn.Module):
    """Units that share a table, between an embedding and a head that is used twice; noise from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(7))
        self.embedding = nn.Linear(3, 5)
        self.units = nn.ModuleList(Unit() for _ in range(3))
        self.head = nn.Linear(5, 3)
        self.same_head = self.head
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, progress: float) -> Loss:
        SEEN.append(int(batch["number"]))
        self.passes += 1
        x = batch["images"]
        error = (self.predict(x) + 0.1 * torch.randn_like(x) - x.flip(1)).square().mean()
        return Loss(error + batch["poison"], {"error": error.detach()})

    def predict(self, x: Tensor) -> Tensor:
        hidden, bias = self.embedding(x), self.table[:5] + self.table[2:]
        early = self.head(hidden)
        for unit in self.units:
            hidden = unit(hidden, bias)
        return early + self.same_head(hidden)


class Gathered(TorchDispatchMode):
    """Counts the bytes that are gathered from all ranks, by type."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.c10d._allgather_base_.default:
            self.bytes[str(args[0].dtype).removeprefix("torch.")] += args[0].nbytes
        return func(*args, **(kwargs or {}))


class Error:
    """Mean squared error on fixed images."""

    name = "val"

    def __init__(self, tower: Tower) -> None:
        self.tower = tower

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        if share.rank:
            return
        x = numbered(1000)["images"]
        yield "minus_error", -(self.tower.predict(x) - x.flip(1)).square().mean().item()


def towered(out: Path, runtime: Runtime, loop: LoopConfig, **options) -> dict:
    """Train a tower; what became of it, as this process sees it."""
    SEEN.clear()
    USED.clear()
    torch.manual_seed(3)
    tower = Tower()
    kept: dict[str, Tensor] = {}

    def keep() -> None:
        kept.update({name: tensor.clone() for name, tensor in tower.state_dict().items()})

    best = Best("val/minus_error", keep)
    run(out, runtime, loop, objective=tower, evaluators=[Error(tower)], best=best, **options)
    elements = sum(parameter.numel() for parameter in tower.parameters())
    return {"state": tower.state_dict(), "best": kept, "seen": list(SEEN), "elements": elements, "used": sorted(USED)}


def main(folder: Path) -> None:
    runtime = start_runtime(MachineConfig(device="cpu", precision="float32", threads=1))
    full, none = replace(runtime, sharding="full"), replace(runtime, sharding="none")
    found: dict[str, object] = {}
    loop = LoopConfig(accumulate=4, log_every=1, save_every=0, evaluate_every=3, ema=0.9)
    for name, kind in (("full", full), ("none", none), ("auto", runtime)):
        found[name] = towered(folder / name, kind, loop)
        found[f"poisoned {name}"] = towered(folder / f"poisoned-{name}", kind, loop, poisoned=9)

    for name, kind in (("full", full), ("none", none)):
        with Gathered() as gathered:
            found[f"bfloat16 {name}"] = towered(folder / f"bfloat16-{name}", replace(kind, autocast=torch.bfloat16), loop)
        found[f"gathered {name}"] = dict(gathered.bytes)
        found[f"float16 {name}"] = towered(folder / f"float16-{name}", replace(kind, autocast=torch.float16), loop)

    saving = LoopConfig(accumulate=4, log_every=1, save_every=1, evaluate_every=3, ema=0.9)
    plans = {"legs": [full, ALONE, full], "changed": [none, full, none], "begun alone": [ALONE, full, ALONE]}
    for name, kinds in plans.items():
        for kind, cut_at in zip(kinds, (12, 20, None), strict=True):
            if kind is not ALONE or runtime.is_main:
                leg = towered(folder / name, kind, saving, cut_at=cut_at)
                found.setdefault(f"seen {name}", []).append(leg["seen"])  # type: ignore[attr-defined]
                found[name] = leg
            runtime.processes.barrier()

    try:
        towered(folder / "stopped", full, loop, signaled=13)
    except Interrupted as error:
        found["stopped"] = str(error)
    try:
        run(folder / "no units", full, loop)
    except UserError as error:
        found["no units"] = str(error)
    torch.save(found, folder / f"found-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
