"""Workers that are killed, or hang: the batches are those of workers that live."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from beitkit.contracts import Batch
from beitkit.data.patience import patient_for
from beitkit.data.workers import Key, read_batches
from beitkit.errors import UserError
from beitkit.terminal import told_to

Read = Callable[[list[Key]], Batch]


def keys(count: int) -> Iterator[list[Key]]:
    return iter([[(0, 2 * place, 0), (0, 2 * place + 1, 0)] for place in range(count)])


def plain(asked: list[Key]) -> Batch:
    return {"index": torch.tensor([index for _, index, _ in asked])}


def failing(at: set[int], fail: Callable[[], object], folder: Path, times: int = 1) -> Read:
    """A reader that fails at these images, each of them so many times: files say how often it did."""

    def read(asked: list[Key]) -> Batch:
        for _, index, _ in asked:
            for time_number in range(times if index in at else 0):
                mark = folder / f"{index}-{time_number}"
                if not mark.exists():
                    mark.touch()
                    fail()
        return plain(asked)

    return read


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hung() -> None:
    time.sleep(1000)


def seen(read: Read, workers: int, count: int = 20) -> tuple[list[int], list[str]]:
    """The images in the order in which they came, and what was told."""
    said: list[str] = []
    with told_to(said.append):
        found = [index for batch in read_batches(read, keys(count), workers) for index in batch["index"].tolist()]
    return found, said


@pytest.fixture(autouse=True)
def _nobody_left() -> Iterator[None]:
    before = signal.getsignal(signal.SIGCHLD)
    yield
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_workers_are_started_anew_with_the_batch_that_is_missing(tmp_path: Path, workers: int) -> None:
    found, said = seen(failing({7, 30}, killed, tmp_path), workers)
    assert found == list(range(40))
    assert 1 <= len(said) <= 2  # two at once are one failure
    assert all(
        "which reads images, was ended by SIGKILL; the processes that read images are started anew" in line for line in said
    )


def test_a_worker_killed_from_outside_costs_nothing() -> None:
    stream = read_batches(plain, keys(40), 2)
    found = [next(stream)["index"].tolist()]
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()
    with told_to(lambda _: None):
        found += [batch["index"].tolist() for batch in stream]
    assert [index for batch in found for index in batch] == list(range(80))


def test_the_third_failure_in_ten_minutes_is_the_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"failed 3 times \(process \d+.* SIGKILL\).* fewer `workers` \(now 1;") as caught:
        seen(failing({4, 14, 24}, killed, tmp_path), 1)
    assert "\n" not in str(caught.value)


def test_failures_that_are_long_ago_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitkit.data.workers.WITHIN", 0.0)
    found, said = seen(failing({4, 14, 24, 34}, killed, tmp_path), 1)
    assert found == list(range(40))
    assert len(said) == 4
    with pytest.raises(UserError, match="failed 3 times"):  # but one that no batch separates from the others does
        seen(failing({5}, killed, tmp_path, times=3), 1)


def test_workers_that_hang_are_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitkit.data.workers.LOOK_AFTER", 0.1)
    with patient_for(1.0):
        found, said = seen(failing({8}, hung, tmp_path), 2)
        assert found == list(range(40))
        assert said == ["no batch came for 1 seconds; the processes that read images are started anew with the same batch"]
        with pytest.raises(UserError, match=r"failed 3 times \(no batch came .* `read\.timeout`"):
            seen(failing({9}, hung, tmp_path, times=3), 2)


def test_an_error_of_the_reader_itself_is_no_failure_of_a_process(tmp_path: Path) -> None:
    def wrong() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        seen(failing({4}, wrong, tmp_path), 1)


def test_closing_ends_workers_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitkit.data.workers.CLOSING", 0.2)
    stream = read_batches(failing({3, 4}, hung, tmp_path), keys(20), 2)
    assert next(stream)["index"].tolist() == [0, 1]
    stream.close()


def test_a_folder_where_no_socket_can_be_is_told_before_workers_wait_for_each_other(tmp_path: Path) -> None:
    """A socket's path has at most some 100 bytes, wherever TMPDIR is."""
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    code = (
        "import torch\nfrom beitkit.data.workers import read_batches\nfrom beitkit.errors import UserError\n"
        "def read(asked):\n    return {'index': torch.tensor([index for _, index, _ in asked])}\n"
        "try:\n    print(len(list(read_batches(read, [[(0, 0, 0)]], 1))))\n"
        "except UserError as error:\n    print(error)\n"
    )

    def said(folder: Path) -> str:
        environment = os.environ | {"TMPDIR": str(folder)}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=120
        )
        return found.stdout.strip()

    assert said(Path("/tmp")) == "1"
    line = said(deep)
    assert "TMPDIR" in line
    assert f"{len(str(deep))} bytes" in line
    assert not list(deep.iterdir())
