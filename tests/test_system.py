"""Files that are whole, and the cores one may use."""

import os
from pathlib import Path

import pytest

from beitkit.system import quoted, usable_cores, write_atomically


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    for processes, cores in (("1", 12), ("4", 3), ("100", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert usable_cores() == cores
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert usable_cores() == 12


def test_bytes_and_writers_make_the_same_file_and_its_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a", b"content")
    write_atomically(tmp_path / "new" / "b", lambda file: file.write(b"content"))
    assert [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())] == [b"content"] * 2


def test_a_disk_that_cannot_keep_the_new_file_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_even_when_the_writer_hides_it(tmp_path: Path) -> None:
    def like_torch(file) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected position") from None

    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", like_torch)
    with pytest.raises(RuntimeError, match="a bug"):
        write_atomically(tmp_path / "file", lambda file: (_ for _ in ()).throw(RuntimeError("a bug")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_PER_TASK": "99"}, 12),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2"}, 4),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2"}, 4),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "16"}, 1),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "two"}, 8),
        ({"SLURM_CPUS_ON_NODE": "96", "SLURM_STEP_TASKS_PER_NODE": "4"}, 12),  # the mask binds this task already
        ({"SLURM_CPUS_PER_TASK": "6", "LOCAL_WORLD_SIZE": "2"}, 3),  # torchrun inside of a task
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2", "LOCAL_WORLD_SIZE": "2"}, 2),
        ({}, 12),
    ],
)
def test_usable_cores_of_a_task_are_what_slurm_gave_it(
    environment: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert usable_cores({"SLURM_STEP_ID": "0", **environment}) == cores
    assert usable_cores({name: value for name, value in environment.items() if name.startswith("SLURM")}) == 12  # no step


def test_usable_cores_follow_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert usable_cores() == 3


def test_paths_can_be_pasted() -> None:
    assert quoted(Path("runs/pre")) == "runs/pre"
    assert quoted(Path("my images")) == "'my images'"
