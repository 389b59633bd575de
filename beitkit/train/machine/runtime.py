"""Device, precision, CPU threads, ranks, and handling of Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

import torch

from beitkit.configs.train import DeviceKind, MachineConfig, Sharding
from beitkit.contracts import autocast_type, precision_name
from beitkit.errors import UserError
from beitkit.system import keep_heap, seconds_waited, usable_cores
from beitkit.train.machine.launch import Rank, rank_from_environment
from beitkit.train.machine.processes import ALONE, Processes, join

SIGNALS = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])
"""Signals that stop a run after its step; SIGUSR1 is SLURM's warning before the time limit."""
GRACE = 10.0
"""Seconds that a step which waits for images has after a signal; launchers give 30."""


@dataclass(frozen=True)
class Runtime:
    """Device, precision and rank of a run."""

    device: torch.device
    autocast: torch.dtype | None
    """Precision of matrix products, or None for float32 throughout."""
    processes: Processes = ALONE
    """The ranks of the run."""
    sharding: Sharding = "none"
    """Whether weights, gradients and moments are sharded over the ranks."""

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.processes.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.processes.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.processes.is_main

    @property
    def is_scaled(self) -> bool:
        """Whether gradients are too small for the precision unless the loss is scaled."""
        return self.autocast is torch.float16

    @property
    def kind(self) -> DeviceKind:
        """The kind of device."""
        return "cuda" if self.device.type == "cuda" else "mps" if self.device.type == "mps" else "cpu"

    def precision(self) -> torch.autocast:
        """Autocast in this run's precision."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def describe(self) -> str:
        """Device, precision and ranks in one line."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' if count > 1 else ''}" if self.device.type == "cpu" else ""
        processes = f"{self.world_size} processes on " if self.world_size > 1 else ""
        return f"{processes}{where}, {precision_name(self.autocast)}{threads}"


def rounding_once(device: str, passes: int) -> AbstractContextManager[object]:
    """Around the passes of a step under autocast: a weight that the first has rounded is not rounded again by the others.

    Autocast drops what it has rounded where the outermost of its contexts ends; this one changes nothing else. Of one pass
    nothing is kept, as it would be held throughout the backward pass.
    """
    return torch.autocast(device, enabled=False) if passes > 1 else nullcontext()


def start_runtime(config: MachineConfig, sharding: Sharding = "none") -> Runtime:
    """Choose device and precision, set the number of CPU threads, and join the process group if there is a launcher.

    Raises:
        UserError: if the machine does not have the device or precision, or the rendezvous fails.
    """
    rank = rank_from_environment()
    torch.set_num_threads(config.threads or usable_cores())
    device = chosen_device(config)
    if rank.world_size > 1:
        device = _own_device(device, rank)
    if device.type == "cpu":
        keep_heap()
    return Runtime(device, chosen_precision(device, config), join(rank, device), sharding)


def chosen_device(config: MachineConfig) -> torch.device:
    """The kind of device that a run computes on.

    Raises:
        UserError: if the machine does not have it.
    """
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = torch.device(next(kind for kind in is_there if is_there[kind]) if config.device == "auto" else config.device)
    if not is_there[device.type]:
        raise UserError(
            f"`device={device.type!r}` was asked for, but this machine has none that PyTorch can use; try `device='auto'`"
        )
    return device


def _own_device(device: torch.device, rank: Rank) -> torch.device:
    """The GPU of this local rank, made the current device; a CPU is shared."""
    if device.type == "mps":
        raise UserError(f"`device='mps'` works in one process only, got {rank.world_size}; try `device='cpu'`")
    if device.type == "cpu":
        return device
    visible = torch.cuda.device_count()
    index = 0 if visible == 1 and rank.sees_own_devices else rank.local_rank
    if index >= visible:
        raise UserError(
            f"process {rank.local_rank} of this machine has no GPU of its own, {visible} can be seen; start {visible} processes"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def chosen_precision(device: torch.device, config: MachineConfig) -> torch.dtype | None:
    """The autocast type of a run on a device; None for float32 throughout.

    Raises:
        UserError: if a GPU does not multiply in the type that is asked for.
    """
    if config.precision == "auto":
        if _multiplies_bfloat16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else None
    if config.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("`precision='bfloat16'` was asked for, but this GPU does not multiply in it; try `precision='float16'`")
    return autocast_type(config.precision)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class NoImages(KeyboardInterrupt):
    """Raised where the main thread waits for images that do not come, after a signal."""


class StopRequest:
    """Records a signal, so that the loop can finish its step and save.

    A second Ctrl-C stops at once. A step that waits for images may never end: there the second signal, or `GRACE` seconds after
    the first, raises `NoImages`.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._is_over = threading.Event()
        self._is_reminded = False
        self._reminder: threading.Thread | None = None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen to SIGINT, SIGTERM and SIGUSR1 (SLURM's warning) while inside; the main thread only."""
        try:
            before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        except ValueError:  # only the main thread can set signal handlers
            before = {}
        try:
            yield self
        finally:
            self._is_over.set()
            if self._reminder is not None:
                self._reminder.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_second = self.signal_number is not None and not self._is_reminded
        self._is_reminded = False
        self.signal_number = number
        waited = seconds_waited()
        if waited is not None and (is_second or waited >= GRACE):
            raise NoImages
        if is_second and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._reminder is None:
            self._reminder = threading.Thread(target=self._remind, args=[number], daemon=True)
            self._reminder.start()

    def _remind(self, number: int) -> None:
        """Send the signal again where the main thread has waited for long: only a signal wakes it up."""
        while not self._is_over.wait(GRACE / 10):
            if (seconds_waited() or 0) >= GRACE:
                self._is_reminded = True
                signal.pthread_kill(threading.main_thread().ident or 0, number)
                return
