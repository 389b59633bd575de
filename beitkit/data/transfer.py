"""From the host to a device, without making the host wait for what the device still has to do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from beitkit.contracts import Batch

ON_HOST = frozenset({"erased"})
"""Keys of a batch that the host reads later, so that they stay there."""


GLANCE = 0.1
"""Seconds after which a thread that waits looks whether anybody still wants its batch."""


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; to CUDA through pinned memory, asynchronously."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=device.type != "mps")


def ahead(stream: Iterator[Batch], prepare: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """The same batches, each `prepare`d; a thread reads and prepares the next one while this one is used.

    What reading raises is raised here. Closing waits for the batch that is being read.
    """
    handed: queue.Queue[Batch | BaseException | None] = queue.Queue(1)
    is_closed = threading.Event()

    def hand(item: Batch | BaseException | None) -> None:
        while not is_closed.is_set():
            try:
                handed.put(item, timeout=GLANCE)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            for batch in stream:
                hand(prepare(batch))
                if is_closed.is_set():
                    return
        except BaseException as error:
            hand(error)
        else:
            hand(None)

    reader = threading.Thread(target=read, name="reading ahead", daemon=True)
    reader.start()
    try:
        while (item := handed.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_closed.set()
        reader.join()


def pinned(stream: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """For CUDA the batches in pinned memory, read and pinned by a thread while the one before is used; else the stream."""
    if device.type != "cuda":
        return stream
    return ahead(stream, lambda batch: {key: value if key in ON_HOST else value.pin_memory() for key, value in batch.items()})


def beside(stream: Iterable[Batch], device: torch.device, cuda: Any = torch.cuda) -> Iterator[Batch]:
    """Batches copied to a CUDA device on a stream of their own: beside what the device still computes for the batches before.

    The host hands out a step while the device is busy with the last one, so the copy runs a step ahead of its use. `cuda` is what
    makes streams.
    """
    copying = cuda.Stream(device)
    for batch in stream:
        with cuda.stream(copying):
            copied = {key: value if key in ON_HOST else moved(value, device) for key, value in batch.items()}
        computing = cuda.current_stream(device)
        computing.wait_stream(copying)
        for key in copied.keys() - ON_HOST:
            copied[key].record_stream(computing)  # or its memory could be handed out on the other stream too early
        yield copied


def to_device(stream: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches moved to a device, but for what the host reads (`ON_HOST`)."""
    if device.type == "cuda":
        yield from beside(stream, device)
        return
    for batch in stream:
        yield {key: value if key in ON_HOST else moved(value, device) for key, value in batch.items()}
