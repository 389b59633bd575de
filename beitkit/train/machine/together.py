"""Several processes of one command on this machine (`devices`): started, stopped and heard together.

Each is what torchrun would have started, in a session of its own, so that Ctrl-C in a terminal reaches the command alone, which
passes it on once. Process 0 keeps the terminal. What the others say of a failure is held back, because all may say the same. The
standard input of all is a pipe that nobody writes to: when the command ends, however it does, they read its end and stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented

from beitkit.command.beside import DEVICES, Devices
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError
from beitkit.terminal import tell
from beitkit.train.machine.launch import LIFELINE, LOST, failing_mark
from beitkit.train.machine.runtime import SIGNALS, chosen_device

HOST = "127.0.0.1"
MISTAKE = 2
"""Exit code after a `UserError`."""
PATIENCE = 5.0
"""Seconds in which the others notice by themselves that a process has failed, before they are asked to stop."""
GRACE = 10.0
"""Seconds after which those that were asked to stop are killed."""
AT_ONCE = 2.0
"""Seconds after a second Ctrl-C."""


class Ended(NamedTuple):
    """How the processes ended."""

    code: int
    """What the command exits with: 0, that of the process that failed first, or 128 + the signal that stopped all."""
    lines: list[str]
    """What is left to say; process 0 has said its own."""
    is_lost: bool = False
    """Whether a process was killed or they lost each other, so that the last saved step is what is kept."""


class _Exit(NamedTuple):
    rank: int
    code: int


class _Signal(NamedTuple):
    number: int


def count_of(devices: Devices, machine: MachineConfig) -> int:
    """How many processes `devices` asks for; of `all` on a CPU it is said that this is one.

    Raises:
        UserError: if there are fewer GPUs.
    """
    device = chosen_device(machine)
    if device.type == "cuda":
        visible = torch.cuda.device_count()
        if devices != "all" and devices > visible:
            shown = (
                ""
                if "CUDA_VISIBLE_DEVICES" not in os.environ
                else f" (CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']})"
            )
            raise UserError(
                f"{DEVICES} {devices} asks for {devices} GPUs, and {visible} can be seen{shown}; give at most {visible}, or all"
            )
        return visible if devices == "all" else devices
    if devices == "all":
        tell(f"{DEVICES} all is one process here, as there is no GPU to give each its own; a number starts several on the CPU")
        return 1
    if device.type == "mps" and devices > 1:
        raise UserError(f"{DEVICES} {devices} cannot share the one GPU of a Mac; leave it out, or add `device='cpu'`")
    return devices


def run_together(command: Sequence[str], count: int) -> Ended:
    """Run a command as this many processes, and wait for all of them."""
    events: SimpleQueue[_Exit | _Signal] = SimpleQueue()
    with _signals_to(lambda number: events.put(_Signal(number))):
        # As torchrun does, the command serves the store at which they meet: so its port is free, and outlasts all of them.
        store = TCPStore(HOST, 0, count, is_master=True, wait_for_workers=False)
        group = _Group(command, count, store.port, events)
        try:
            return group.wait()
        finally:
            group.close()


@contextmanager
def _signals_to(receive: Callable[[int], object]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda number, _: receive(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Group:
    """The processes, and what was heard of them."""

    def __init__(self, command: Sequence[str], count: int, port: int, events: SimpleQueue[_Exit | _Signal]) -> None:
        self._events = events
        self._codes: dict[int, int] = {}
        """Exit codes by rank, in the order in which they ended."""
        self._held: dict[int, list[str]] = {rank: [] for rank in range(count)}
        self._sent: list[int] = []
        """Signals that were passed on."""
        self._dismissed: set[int] = set()
        """Ranks that had not ended when a failure made us stop all."""
        self._next: deque[tuple[float, signal.Signals]] = deque()
        """What is done to those that have not ended, and when."""
        lifeline, self._end = os.pipe()
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            LIFELINE: "stdin",
        }
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        for rank in range(count):
            process = subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=lifeline,
                stderr=subprocess.PIPE if rank else None,
                text=True,
                errors="backslashreplace",
                start_new_session=True,
            )
            self._processes.append(process)
            self._threads.append(threading.Thread(target=self._attend, args=(rank, process), daemon=True))
            self._threads[-1].start()
        os.close(lifeline)

    def _attend(self, rank: int, process: subprocess.Popen[str]) -> None:
        """Hear a process to its end."""
        mark = failing_mark(rank)
        try:
            for line in process.stderr or ():
                if line.startswith(mark):
                    self._held[rank].append(line.removeprefix(mark).rstrip("\n"))
                else:
                    with suppress(OSError):  # whoever read our own error output may be gone
                        print(line, end="", file=sys.stderr, flush=True)
        finally:
            self._events.put(_Exit(rank, process.wait()))
            if process.stderr is not None:
                process.stderr.close()

    def send(self, number: signal.Signals | int) -> None:
        """Send a signal to those that have not ended; SIGKILL to their workers as well."""
        for rank, process in enumerate(self._processes):
            with suppress(ProcessLookupError):
                if rank not in self._codes:
                    (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)

    def close(self) -> None:
        """Leave nobody behind."""
        self.send(signal.SIGKILL)
        os.close(self._end)
        for thread in self._threads:
            thread.join()

    def wait(self) -> Ended:
        """Wait until all have ended; those that are left when one has failed are made to."""
        while len(self._codes) < len(self._processes):
            try:
                event = self._events.get(timeout=max(0.0, self._next[0][0] - time.monotonic()) if self._next else None)
            except Empty:
                self.send(self._next.popleft()[1])
                continue
            if isinstance(event, _Signal):
                self._pass_on(event.number)
            else:
                self._note(event)
        return self._ended()

    def _pass_on(self, number: int) -> None:
        is_second = number == signal.SIGINT and number in self._sent
        self._sent.append(number)
        self.send(number)
        if is_second:
            self._next = deque([(time.monotonic() + AT_ONCE, signal.SIGKILL)])
            self._dismiss()

    def _note(self, event: _Exit) -> None:
        self._codes[event.rank] = event.code
        if event.code and event.code - 128 not in self._sent and not self._next:
            now = time.monotonic()
            self._next.extend([(now + PATIENCE, signal.SIGTERM), (now + PATIENCE + GRACE, signal.SIGKILL)])
            self._dismiss()

    def _dismiss(self) -> None:
        self._dismissed |= {*range(len(self._processes))} - self._codes.keys()

    def _ended(self) -> Ended:
        codes, stops = self._codes, {128 + number for number in self._sent} | {-number for number in self._sent}
        # A process that notices the failure of another ends with LOST.
        own = {rank: code for rank, code in codes.items() if code not in {0, LOST, *stops} and not self._is_dismissal(rank, code)}
        if own:
            rank, code = next(iter(own.items()))
            if code < 0:
                return Ended(128 - code, [f"process {rank} was killed by {_named(-code)}"], is_lost=True)
            if codes[0] == code:
                return Ended(code, [])
            if not self._held[rank]:
                return Ended(code, [f"process {rank} failed with exit code {code}"])
            # A mistake in the command is the same whoever finds it.
            return Ended(code, [line if code == MISTAKE else f"process {rank}: {line}" for line in self._held[rank]])
        if not any(codes.values()):
            return Ended(0, [])
        if self._sent:
            is_silent = codes[0] < 0 or codes[0] == LOST
            return Ended(128 + self._sent[0], ["stopped at once"] if is_silent else [], is_lost=is_silent)
        return Ended(1, ["the processes lost each other"], is_lost=True)

    def _is_dismissal(self, rank: int, code: int) -> bool:
        return rank in self._dismissed and (code < 0 or code > 128)


def _named(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name}, as the system does where memory is short" if number == signal.SIGKILL else name
