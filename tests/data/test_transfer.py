"""Batches on their way to a device; CUDA's part with a stand-in, where there is no GPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from beitkit.contracts import Batch
from beitkit.data.transfer import ahead, beside, pinned, to_device

CPU = torch.device("cpu")


def numbered(count: int, read: list[int]) -> Iterator[Batch]:
    for number in range(count):
        read.append(number)
        yield {"images": torch.full((2,), number), "erased": torch.full((2, 5), number)}


def test_moving_keeps_values_and_what_the_host_reads() -> None:
    batch = next(numbered(1, []))
    (moved,) = to_device([batch], CPU)
    assert moved["images"].tolist() == [0, 0]
    assert moved["erased"] is batch["erased"]


def test_a_cpu_needs_no_thread() -> None:
    stream = numbered(1, [])
    assert pinned(stream, CPU) is stream


def test_one_batch_is_read_ahead_and_one_waits_in_line() -> None:
    read: list[int] = []
    stream = ahead(numbered(10, read), lambda batch: {key: value + 1 for key, value in batch.items()})
    for number in range(10):
        assert next(stream)["images"].tolist() == [number + 1] * 2
        assert len(read) <= number + 3, "the one in use, the one in line, the one being read"
    with pytest.raises(StopIteration):
        next(stream)
    assert read == list(range(10))


def test_what_reading_raises_arrives_where_the_batch_would_have() -> None:
    def broken() -> Iterator[Batch]:
        yield from numbered(1, [])
        raise FileNotFoundError("gone")

    stream = ahead(broken(), dict)
    next(stream)
    with pytest.raises(FileNotFoundError, match="gone"):
        next(stream)


def test_closing_ends_the_thread_though_it_has_a_batch_to_hand_over() -> None:
    before = threading.active_count()
    stream = ahead(numbered(1000, []), dict)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_copies_are_made_beside_the_computing_which_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's streams, in writing."""
    log: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Cuda:
        Stream = staticmethod(lambda device: Stream("copying"))
        current = "computing"

        @contextmanager
        def stream(self, stream: Stream) -> Iterator[None]:
            before, self.current = self.current, stream.name
            yield
            self.current = before

        def current_stream(self, device: torch.device) -> Stream:
            return Stream(self.current)

    cuda = Cuda()

    def moved(tensor: Tensor, device: torch.device) -> Tensor:
        log.append(f"copied on {cuda.current}")
        return tensor.clone()

    monkeypatch.setattr("beitkit.data.transfer.moved", moved)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: log.append(f"kept for {stream.name}"))
    batches = list(beside(numbered(2, []), CPU, cuda))
    assert log == ["copied on copying", "computing waits for copying", "kept for computing"] * 2
    assert [batch["images"].tolist() for batch in batches] == [[0, 0], [1, 1]]
