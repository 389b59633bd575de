"""Batches of samples, read in this process or by workers.

A batch is addressed by the keys of its samples, so workers need no sampler, and their number does not change the result. Workers
that die or hang are started anew with the batch that did not come; what is read is the same.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from beitkit.contracts import Batch
from beitkit.data.patience import patience
from beitkit.errors import UserError
from beitkit.system import usable_cores, waiting
from beitkit.terminal import one_line, tell

Key = tuple[int, int, int]
"""(epoch, index, repeat): all that a sample depends on, besides the seed; the repeat counts how often the epoch has shown it."""
Read = Callable[[list[Key]], Batch]
"""From the keys of samples to a batch of them."""
LOOK_AFTER = 1.0
"""Seconds between looks at whether the workers live."""
CLOSING = 5.0
"""Seconds that workers have to end by themselves."""
MOST_FAILURES, WITHIN = 3, 600.0
"""Reading gives up at the third failure in ten minutes, or without a batch in between."""


def default_workers(cores: int | None = None) -> int:
    """Default number of workers: one less than the cores, at most 16.

    On one or two cores none: workers would compete with training (on two cores with small images, one or two workers were slower
    than none).
    """
    cores = usable_cores() if cores is None else cores
    return 0 if cores <= 2 else min(cores - 1, 16)


def read_batches(read: Read, keys: Iterable[list[Key]], workers: int) -> Generator[Batch, None, None]:
    """The batches of these keys, in order, read in this process or by workers; -1 workers are `default_workers()`.

    Raises:
        UserError: what `read` raises, workers that died or hung again and again, or no place for their sockets.
    """
    fetch = _Fetch(read)
    workers = default_workers() if workers == -1 else workers
    if workers:
        _try_socket()
    source = (fetch[batch] for batch in keys) if workers == 0 else _by_workers(fetch, keys, workers)
    with contextlib.closing(source):
        while True:
            with waiting():
                item = next(source, None)
            if item is None:
                return
            if isinstance(item, UserError):
                raise item
            yield item


def _try_socket() -> None:
    """See whether a socket can be made where workers make theirs, for the batches that they hand over.

    They would fail without a word, and whoever waits for a batch would wait in vain.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder:  # names as long as those that multiprocessing gives
            connection.Listener(str(Path(folder, "listener-12345678")), "AF_UNIX").close()
    except OSError as error:
        folder = tempfile.gettempdir()
        length = len(os.fsencode(folder))
        raise UserError(
            "processes that read images hand over batches by local sockets, which cannot be made in the folder for temporary "
            f"files, {one_line(folder)} ({error.strerror or error}; its name has {length} bytes). Set TMPDIR to a folder with a "
            "short name that can be written to, or `workers` to 0, which reads in the main process"
        ) from None


class _Fetch(Dataset[Batch | UserError]):
    """A dataset whose items are whole batches."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, index: list[Key]) -> Batch | UserError:
        try:
            return self.read(index)
        except UserError as error:
            return error  # a raised one would arrive with the worker's traceback inside its message


class _Asked:
    """The keys of the batches, in order; those whose batch has not come can be asked for again."""

    def __init__(self, keys: Iterable[list[Key]]) -> None:
        self._new = iter(keys)
        self._again: deque[list[Key]] = deque()
        self._out: deque[list[Key]] = deque()
        self.came = 0
        """How many batches have."""

    def __iter__(self) -> Iterator[list[Key]]:
        return self

    def __next__(self) -> list[Key]:
        keys = self._again.popleft() if self._again else next(self._new)
        self._out.append(keys)
        return keys

    def has_come(self) -> None:
        """The first batch that was out is there."""
        self._out.popleft()
        self.came += 1

    def ask_again(self) -> None:
        """Ask for all that are out once more."""
        self._again.extendleft(reversed(self._out))
        self._out.clear()


class _Failed(Exception):  # noqa: N818 - what happened
    """The workers bring no batch."""


def _by_workers(fetch: _Fetch, keys: Iterable[list[Key]], workers: int) -> Generator[Batch | UserError, None, None]:
    asked = _Asked(keys)
    failures: list[tuple[float, int]] = []  # when, and how many batches had come
    while True:
        crew, failure = None, ""
        try:
            crew = _Crew(fetch, asked, workers)
            while (item := crew.batch()) is not None:
                asked.has_come()
                yield item
            return
        except _Failed as failed:
            failure = str(failed)
        except GeneratorExit:
            raise
        except BaseException:
            if crew is not None:
                crew.kill()
            raise
        finally:
            if crew is not None:
                crew.close(at_once=bool(failure))
        now = time.monotonic()
        failures = [(when, came) for when, came in failures if now - when < WITHIN or came == asked.came] + [(now, asked.came)]
        if len(failures) >= MOST_FAILURES:
            raise UserError(
                f"the processes that read images failed {len(failures)} times ({failure}). If they were killed, memory or shared "
                f"memory may have run out: use fewer `workers` (now {workers}; 0 reads in the main process), or a smaller "
                "`read.max_memory`. If they hang, see whether the disk answers, or raise `read.timeout`"
            )
        asked.ask_again()
        tell(f"{failure}; the processes that read images are started anew with the same batch")


class _Crew:
    """Workers that read, behind a DataLoader."""

    def __init__(self, fetch: _Fetch, asked: _Asked, workers: int) -> None:
        before = set(multiprocessing.active_children())
        failure = ""
        try:
            self._iterator: Iterator[Batch | UserError] | None = _started(fetch, asked, workers)
        except OSError as error:
            failure = f"no process can be started ({error.strerror or error})"
        self._processes: list[BaseProcess] = [child for child in multiprocessing.active_children() if child not in before]
        if failure:
            self.kill()
            raise _Failed(failure)

    def batch(self) -> Batch | UserError | None:
        """The next batch; None after the last one.

        Raises:
            _Failed: a worker died, or none has brought it for as long as `patience` says.
        """
        assert self._iterator is not None
        failure, looks = "", 0
        while not failure:
            try:
                return next(self._iterator, None)
            except RuntimeError as error:
                words = str(error)
                if not words.startswith("DataLoader"):
                    raise
                if "timed out" not in words:
                    failure = self._obituary() or " ".join(words.split())
            except (OSError, EOFError) as error:  # the worker died while its batch was handed over
                if str(error).startswith("Caught "):
                    raise
                failure = self._obituary() or f"a batch could not be handed over ({type(error).__name__})"
            # Looks are counted, not time: a process that was stopped for an hour has not waited for an hour.
            looks += 1
            if not failure and 0 < patience() <= looks * LOOK_AFTER:
                failure = f"no batch came for {patience():g} seconds"
        raise _Failed(failure)  # outside of `except`: the traceback would keep the iterator

    def kill(self) -> None:
        """End the workers at once, whatever they wait for."""
        self._send_kill()
        for process in self._processes:
            process.join(CLOSING)

    def _send_kill(self) -> None:
        for process in self._processes:
            process.kill()

    def close(self, *, at_once: bool = False) -> None:
        """End the workers; those that take longer than `CLOSING` are killed."""
        if at_once:
            self.kill()
        timer = threading.Timer(CLOSING, self._send_kill)
        timer.daemon = True
        timer.start()
        self._iterator = None  # they end with the last reference
        timer.cancel()

    def _obituary(self) -> str:
        """Which worker died, and how; empty if none did."""
        ending = connection.wait([process.sentinel for process in self._processes], LOOK_AFTER)
        for process in self._processes:
            if process.sentinel in ending:
                process.join()  # its files are closed before it has ended
        dead = [process for process in self._processes if not process.is_alive()]
        if not dead:
            return ""
        code = dead[0].exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"process {dead[0].pid}, which reads images, {how}"


def _as_it_is(item: Any) -> Any:
    return item


def _left_to_main(worker: int) -> None:
    # torchrun and SLURM ask whole process trees to stop; the main process still needs images to finish its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _started(fetch: _Fetch, keys: _Asked, workers: int) -> Iterator[Batch | UserError]:
    """A loader's iterator, its workers running."""
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGCHLD) if is_main else None
    with warnings.catch_warnings():
        # Python 3.12 warns about every fork of a process with threads; torch's are idle here and not used by the workers.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        # More workers than cores are the user's choice; readers of slow disks want them.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader = DataLoader(
            fetch,
            sampler=keys,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            timeout=LOOK_AFTER,
            worker_init_fn=_left_to_main,
            generator=torch.Generator(),  # its own: starting workers must not draw from the numbers that training uses
        )
        iterator = iter(loader)
    if is_main and previous is not None:
        # torch's handler raises wherever the main thread happens to be, in the middle of an optimizer step for instance.
        # Without it a dead worker is noticed when its batch is waited for, at the place where we can say so.
        signal.signal(signal.SIGCHLD, previous)
    return iterator
