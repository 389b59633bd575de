"""The process group of a run: rendezvous, barriers and collectives.

Only rank 0 writes and prints. Barriers and small host values use gloo, where all ranks notice at once that one has died.
Gradients on GPUs use NCCL, where they may not notice; there the launcher ends the others (torchrun always does, srun with
--kill-on-bad-exit).
"""

from __future__ import annotations

import atexit
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, ProcessGroup, TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented

from beitkit.errors import ProcessLost, UserError
from beitkit.train.machine.launch import Rank

Value = TypeVar("Value")

MEETING_TIME = timedelta(minutes=10)
"""Timeout of the rendezvous."""
SILENT_WAIT = 10.0
"""Seconds after which a process says that it waits."""
LONGEST_WAIT = timedelta(days=1)
"""Timeout of collectives: rank 0 may be evaluating or writing a report."""
SIGNS_OF_LOSS = re.compile(r"[Cc]onnection (was )?(closed|reset|refused)|[Bb]roken pipe|[Tt]imed out|recvValue failed|NCCL")


@dataclass(frozen=True)
class Processes:
    """Rank and process group; collective methods must be called by all ranks, in the same order."""

    rank: int = 0
    world_size: int = 1
    host: ProcessGroup | None = None
    """The gloo group of host collectives; None for a single process."""
    background: ProcessGroup | None = None
    """Another one, for a thread that works beside the main one."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def aside(self) -> Processes:
        """The same for a thread: what it exchanges does not get between what the main thread does."""
        return replace(self, host=self.background)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            with self.watched():
                distributed.barrier(group=self.host)

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in rank order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            with self.watched():
                distributed.all_gather_object(values, value, group=self.host)
        return values

    def gather(self, value: Value) -> list[Value] | None:
        """The values of all ranks, in rank order, in rank 0; None elsewhere."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size if self.is_main else None
        with self.watched():
            distributed.gather_object(value, values, dst=0, group=self.host)
        return values

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over all ranks in place; returns it."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the error of a dead peer into `ProcessLost`."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not SIGNS_OF_LOSS.search(str(error)):
                raise
            raise ProcessLost(
                "another process of this run stopped, its message says why; the last saved step is kept, and the same command "
                "continues"
            ) from None


ALONE = Processes()
"""A run of one process."""


def join(rank: Rank, device: torch.device) -> Processes:
    """Join the process group of the run; an existing one is reused.

    Raises:
        UserError: if the rendezvous fails.
    """
    if rank.world_size == 1:
        return ALONE
    with _saying_what_it_waits_for(rank):
        if not distributed.is_initialized():
            _meet(rank, device)
        host, background = (distributed.new_group(backend="gloo", timeout=LONGEST_WAIT) for _ in range(2))
    assert isinstance(host, ProcessGroup)
    assert isinstance(background, ProcessGroup)
    return Processes(rank.rank, rank.world_size, host, background)


@contextmanager
def _saying_what_it_waits_for(rank: Rank) -> Iterator[None]:
    """A line on the error output if the block takes long."""
    line = (
        f"beitkit: process {rank.rank} of {rank.world_size} waits for the others at {rank.address}:{rank.port}, for at most "
        f"{MEETING_TIME.total_seconds() / 60:g} minutes; start them all with torchrun or srun"
    )
    timer = threading.Timer(SILENT_WAIT, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _meet(rank: Rank, device: torch.device) -> None:
    try:
        store = TCPStore(
            rank.address,
            rank.port,
            rank.world_size,
            is_master=rank.rank == 0 and not rank.is_meeting_served,
            timeout=MEETING_TIME,
            wait_for_workers=False,
        )
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            # After a restart the launcher's store still holds the addresses of processes that are gone.
            store=PrefixStore(f"attempt{rank.attempt}", store),
            rank=rank.rank,
            world_size=rank.world_size,
            device_id=device if device.type == "cuda" else None,
        )
    except distributed.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {rank.rank} of {rank.world_size} could not meet the others at {rank.address}:{rank.port} ({reason}); "
            "check MASTER_ADDR and MASTER_PORT, and that all processes were started"
        ) from None
    atexit.register(distributed.destroy_process_group)
