"""Batches of samples, read in this process or by workers.

A batch is addressed by the keys of its samples, so workers need no sampler, and their number does not change the result.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from beitkit.contracts import Batch
from beitkit.errors import UserError
from beitkit.system import usable_cores

Key = tuple[int, int, int]
"""(epoch, index, repeat): all that a sample depends on, besides the seed; the repeat counts how often the epoch has shown it."""
Read = Callable[[list[Key]], Batch]
"""From the keys of samples to a batch of them."""


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
        UserError: what `read` raises, or a worker process that died.
    """
    fetch = _Fetch(read)
    workers = default_workers() if workers == -1 else workers
    source = (fetch[batch] for batch in keys) if workers == 0 else _by_workers(fetch, keys, workers)
    with contextlib.closing(source):
        for item in source:
            if isinstance(item, UserError):
                raise item
            yield item


class _Fetch(Dataset[Batch | UserError]):
    """A dataset whose items are whole batches."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, index: list[Key]) -> Batch | UserError:
        try:
            return self.read(index)
        except UserError as error:
            return error  # a raised one would arrive with the worker's traceback inside its message


def _as_it_is(item: Any) -> Any:
    return item


def _left_to_main(worker: int) -> None:
    # torchrun and SLURM ask whole process trees to stop; the main process still needs images to finish its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _by_workers(fetch: _Fetch, keys: Iterable[list[Key]], workers: int) -> Generator[Batch | UserError, None, None]:
    iterator = _started(fetch, keys, workers)
    failure: str | None = None
    try:
        yield from iterator
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        failure = " ".join(str(error).split())
    finally:
        # The workers end with the last reference to the iterator. An exception's traceback is one too, so what the user
        # is told is raised after it is gone.
        del iterator
    if failure is not None:
        raise UserError(
            f"a process that reads images stopped ({failure}); it may have run out of memory or of shared memory: "
            f"use fewer `workers` (now {workers}; 0 reads in the main process)"
        )


def _started(fetch: _Fetch, keys: Iterable[list[Key]], workers: int) -> Iterator[Batch | UserError]:
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
            worker_init_fn=_left_to_main,
            generator=torch.Generator(),  # its own: starting workers must not draw from the numbers that training uses
        )
        iterator = iter(loader)
    if is_main and previous is not None:
        # torch's handler raises wherever the main thread happens to be, in the middle of an optimizer step for instance.
        # Without it a dead worker is noticed when its batch is waited for, at the place where we can say so.
        signal.signal(signal.SIGCHLD, previous)
    return iterator
