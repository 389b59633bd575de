"""Checkpoints: whole or not used, and never a pickle that runs code."""

import os
from pathlib import Path

import pytest
import torch

from beitkit.errors import UserError
from beitkit.system import write_atomically
from beitkit.train.checkpoint import Checkpoints


def state(step: int) -> dict:
    return {"step": step, "weight": torch.full((100,), float(step))}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    return checkpoints


def test_the_newest_is_restored_and_two_are_kept(saved: Checkpoints) -> None:
    restored = saved.restore()
    assert restored is not None
    assert torch.equal(restored["weight"], state(3)["weight"])
    assert sorted(path.name for path in saved.folder.iterdir()) == [
        "step-00000002.json", "step-00000002.pt", "step-00000003.json", "step-00000003.pt",
    ]  # fmt: skip


def test_a_new_run_has_nothing_to_restore(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").restore() is None


@pytest.mark.parametrize("size", [0, 1, "half", "all but one"])
@pytest.mark.parametrize("name", ["step-00000003.pt", "step-00000003.json"])
def test_a_torn_file_falls_back_to_the_one_before(saved: Checkpoints, name: str, size: int | str) -> None:
    path = saved.folder / name
    whole = path.stat().st_size
    os.truncate(path, {"half": whole // 2, "all but one": whole - 1}.get(size, size))  # type: ignore[call-overload, arg-type]
    restored = saved.restore()
    assert restored is not None
    assert restored["step"] == 2


def test_a_flipped_bit_is_noticed(saved: Checkpoints) -> None:
    path = saved.folder / "step-00000003.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    restored = saved.restore()
    assert restored is not None
    assert restored["step"] == 2


def test_a_missing_note_means_the_file_is_not_whole(saved: Checkpoints) -> None:
    (saved.folder / "step-00000003.json").unlink()
    restored = saved.restore()
    assert restored is not None
    assert restored["step"] == 2


def test_no_whole_checkpoint_at_all_is_said(saved: Checkpoints) -> None:
    for path in saved.folder.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        saved.restore()


def test_leftovers_of_a_killed_save_are_removed(saved: Checkpoints) -> None:
    (saved.folder / "step-00000004.pt.tmp").write_bytes(b"half")
    saved.save(4, state(4))
    assert not list(saved.folder.glob("*.tmp"))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(file) -> None:
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
