"""How a long command is computed: every image once, in the way that was fastest on the first ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from beitkit.configs.train import MachineConfig
from beitkit.inference import pace
from beitkit.inference.pace import READ, SIZES, TRIED_FROM, TURNS, Pacing, Spent, Way
from tests.inference.conftest import Command

ONE = MachineConfig(threads=1, workers=0)
LONG = 100 * READ
Seconds = Callable[[Way, int], Spent]


class Machine:
    """A machine on which batches take what a function says."""

    def __init__(self, images: int, seconds: Seconds) -> None:
        self.images, self.seconds = images, seconds
        self.done: list[tuple[int, Way, int]] = []
        """Batch, way and workers."""

    def __call__(self, first: int, ways: Iterable[Way], workers: int) -> Iterator[tuple[int, Spent]]:
        for way, number in zip(ways, range(first, -(-self.images // READ)), strict=False):
            self.done.append((number, way, workers))
            yield number, self.seconds(way, workers)


def run(machine: Machine, pacing: Pacing, cores: int = 1, *, is_tried: bool = True) -> list[tuple[int, Way, int]]:
    assert list(pacing.results(machine, machine.images, cores, is_tried=is_tried)) == list(range(-(-machine.images // READ)))
    assert [number for number, _, _ in machine.done] == list(range(-(-machine.images // READ)))
    return machine.done


def by_size(best: int) -> Seconds:
    return lambda way, workers: Spent(0.0, 1.0 if way.batch_size == best else 1.1)


@pytest.mark.parametrize("best", SIZES)
def test_the_fastest_size_computes_the_rest(best: int) -> None:
    said: list[str] = []
    kept: list[Way] = []
    pacing = Pacing(ONE, None, say=said.append)
    pacing.remember(None, kept.append)
    done = run(Machine(LONG, by_size(best)), pacing)
    tried = 1 + TURNS * len(SIZES)
    assert {way for _, way, _ in done[:tried]} == {Way(size, 1) for size in SIZES}
    assert {way for _, way, _ in done[tried:]} == {Way(best, 1)}
    assert kept == [Way(best, 1)]
    assert len(said) == 1
    assert f"{best} images at a time by 1 thread (" in said[0]


def test_a_little_is_noise_and_one_slow_batch_is_not_believed() -> None:
    first = iter([9.0])  # the network's first batch, which nobody times
    slow = iter([1.0, 8.0, 1.0])

    def seconds(way: Way, workers: int) -> Spent:
        if way.batch_size == READ:
            return Spent(0.0, next(first, None) or next(slow, 1.0))
        return Spent(0.0, 0.98)

    done = run(Machine(LONG, seconds), Pacing(ONE, None))
    assert done[-1][1] == Way(READ, 1)


def test_fewer_threads_where_that_is_faster() -> None:
    def seconds(way: Way, workers: int) -> Spent:
        return Spent(0.0, way.threads / way.batch_size)

    done = run(Machine(LONG, seconds), Pacing(MachineConfig(workers=0), None), cores=8)
    assert done[-1][1] == Way(READ, 4)
    given = run(Machine(LONG, seconds), Pacing(MachineConfig(threads=8, workers=0), None), cores=8)
    assert {way.threads for _, way, _ in given} == {8}


def test_what_is_given_is_not_tried() -> None:
    done = run(Machine(LONG, by_size(8)), Pacing(ONE, READ))
    assert {way for _, way, _ in done} == {Way(READ, 1)}
    pacing = Pacing(ONE, 16)
    assert pacing.read == 16


def test_nothing_is_tried_in_short_commands_and_on_gpus() -> None:
    for images, is_tried in ((TRIED_FROM - 1, True), (LONG, False)):
        done = run(Machine(images, by_size(8)), Pacing(MachineConfig(workers=0), None), cores=8, is_tried=is_tried)
        assert {way for _, way, _ in done} == {Way(READ, 8)}


def test_a_stopped_command_goes_on_as_it_began() -> None:
    kept: list[Way] = []
    pacing = Pacing(ONE, None)
    pacing.remember(None, kept.append)
    results = pacing.results(Machine(LONG, by_size(16)), LONG, 1, is_tried=True)
    written = [next(results) for _ in range(1 + TURNS * len(SIZES))]
    assert len(written) * READ <= 16 * READ  # before the first part is whole
    assert kept == [Way(16, 1)]
    again = Pacing(ONE, None)
    again.remember(kept[0], kept.append)
    for images in (LONG, 3 * READ):
        assert {way for _, way, _ in run(Machine(images, by_size(64)), again)} == {Way(16, 1)}
    assert kept == [Way(16, 1)]
    again.remember(Way(16, 12), kept.append)  # from a larger machine
    assert {way for _, way, _ in run(Machine(LONG, by_size(64)), again, cores=2)} == {Way(16, 2)}


@pytest.mark.parametrize(("reading", "beside", "expected"), [(1.0, 1.5, 2), (1.0, 2.1, 0), (0.05, 0.9, 0)])
def test_processes_read_where_that_is_faster(
    reading: float, beside: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(way: Way, workers: int) -> Spent:
        return Spent(0.0, beside) if workers else Spent(reading, 1.0)

    monkeypatch.setattr(pace, "default_workers", lambda: 0)
    said: list[str] = []
    done = run(Machine(LONG, seconds), Pacing(MachineConfig(threads=2), None, say=said.append), cores=2)
    assert done[-1][2] == expected
    assert (2 in {workers for _, _, workers in done}) == (reading == 1.0)
    assert len(said) == 1 + (reading == 1.0)
    given = run(Machine(LONG, seconds), Pacing(MachineConfig(threads=2, workers=1), None), cores=2)
    assert {workers for _, _, workers in given} == {1}


def test_what_a_trial_computes_is_what_was_asked_for(
    world: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of 4 of 40 images, of which one cannot be read; nine are tried, in passes of 4, 2 and 1."""
    images = tmp_path / "images"
    shutil.copytree(world / "new", images)
    broken = images / "dog" / "01.png"
    broken.write_bytes(broken.read_bytes()[:200])
    arguments = ["embed", images, "--model", world / "cls", "--out"]
    assert command(*arguments, tmp_path / "fixed.npy", "--batch-size", 64) == 0
    for name, value in (("READ", 4), ("SIZES", (4, 2, 1)), ("TRIED_FROM", 40)):
        monkeypatch.setattr(pace, name, value)
    capsys.readouterr()
    assert command(*arguments, tmp_path / "tried.npy") == 0
    assert "tried on the first images" in capsys.readouterr().err
    expected, found = np.load(tmp_path / "fixed.npy"), np.load(tmp_path / "tried.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(found).any(1).sum() == 1
