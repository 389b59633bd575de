"""Checkpoints: whole or not used, and never a pickle that runs code."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beitkit.errors import UserError
from beitkit.system import write_atomically
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Piece
from beitkit.train.checkpoints.tensor_files import digest_of_file, write_tensors


def state(step: int) -> dict[str, Piece]:
    return {"weight": Piece(torch.full((100,), float(step)), (100,))}


def read(checkpoints: Checkpoints) -> tuple[int, float]:
    """The step that is restored, and the one that its tensors say."""
    restored = checkpoints.newest()
    assert restored is not None
    into = state(0)
    checkpoints.restore(restored, into)
    assert len(into["weight"].rows.unique()) == 1
    return restored.step, into["weight"].rows[0].item()


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"best": step / 2})
    return checkpoints


def test_the_newest_is_restored_and_two_are_kept(saved: Checkpoints) -> None:
    assert read(saved) == (3, 3.0)
    restored = saved.newest()
    assert restored is not None
    assert restored.numbers == {"best": 1.5}
    assert sorted(path.name for path in saved.folder.iterdir()) == [
        "step-00000002.0.safetensors", "step-00000002.json", "step-00000003.0.safetensors", "step-00000003.json",
    ]  # fmt: skip


def test_a_new_run_has_nothing_to_restore(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").newest() is None


@pytest.mark.parametrize("size", [0, 1, "half", "all but one"])
@pytest.mark.parametrize("name", ["step-00000003.0.safetensors", "step-00000003.json"])
def test_a_torn_file_falls_back_to_the_one_before(saved: Checkpoints, name: str, size: int | str) -> None:
    path = saved.folder / name
    whole = path.stat().st_size
    os.truncate(path, {"half": whole // 2, "all but one": whole - 1}.get(size, size))  # type: ignore[call-overload, arg-type]
    assert read(saved) == (2, 2.0)


def test_a_flipped_bit_is_noticed(saved: Checkpoints) -> None:
    path = saved.folder / "step-00000003.0.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert read(saved) == (2, 2.0)


def test_any_flipped_bit_in_a_manifest_is_noticed(saved: Checkpoints) -> None:
    path = saved.folder / "step-00000003.json"
    data, whole = path.read_bytes(), saved.newest()
    fell_back = 0
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        restored = saved.newest()
        assert restored is not None
        if restored.step == 3:
            assert restored == whole, bytes(flipped)
            assert saved.damaged == []
        else:
            assert (restored.step, saved.damaged) == (2, [3])
            fell_back += 1
    assert fell_back > 7 * len(data), "a flip that changes nothing is one of a space"


def test_a_manifest_from_before_there_were_checksums_is_read(saved: Checkpoints) -> None:
    path, whole = saved.folder / "step-00000003.json", saved.newest()
    content = json.loads(path.read_text())
    assert len(content.pop("checksum")) == 32
    path.write_text(json.dumps(content))
    assert saved.newest() == whole
    assert read(saved) == (3, 3.0)


def test_a_torn_checkpoint_is_replaced_by_the_run_that_went_back(saved: Checkpoints) -> None:
    (saved.folder / "step-00000003.0.safetensors").write_bytes(b"")
    saved.save(2, state(2), {})
    assert sorted(path.name for path in saved.folder.iterdir()) == ["step-00000002.0.safetensors", "step-00000002.json"]


def test_no_whole_checkpoint_at_all_is_said(saved: Checkpoints) -> None:
    for path in saved.folder.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        saved.newest()


def test_a_pickle_in_the_place_of_a_file_is_not_opened(saved: Checkpoints, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    path = saved.folder / "step-00000003.0.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    manifest = saved.folder / "step-00000003.json"
    content = json.loads(manifest.read_text())
    del content["checksum"]
    content["files"]["0"] = {"bytes": path.stat().st_size, "blake2b": digest_of_file(path)}
    manifest.write_text(json.dumps(content))
    restored = saved.newest()
    assert restored is not None
    with pytest.raises(UserError, match="does not hold what its manifest says"):
        saved.restore(restored, state(0))
    assert not (tmp_path / "ran").exists()


def test_leftovers_of_a_killed_save_are_removed(saved: Checkpoints) -> None:
    (saved.folder / "step-00000004.0.safetensors.tmp").write_bytes(b"half")
    (saved.folder / "step-00000003.1.safetensors").write_bytes(b"of two processes")
    saved.save(4, state(4), {})
    assert len(list(saved.folder.iterdir())) == 5
    saved.save(5, state(5), {})
    assert len(list(saved.folder.iterdir())) == 4
    assert not list(saved.folder.glob("*.tmp"))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Piece

torch.set_num_threads(1)
checkpoints, size = Checkpoints(Path(sys.argv[1])), 300_000
drawn = random.Random(0)
reached = 0
for _ in range(25):
    child = os.fork()
    if child == 0:
        step = reached
        while True:
            step += 1
            checkpoints.save(step, {"weight": Piece(torch.full((size,), float(step)), (size,))}, {})
    time.sleep(drawn.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    stored = checkpoints.newest()
    if stored is not None:
        piece = Piece(torch.zeros(size), (size,))
        checkpoints.restore(stored, {"weight": piece})
        assert (piece.rows == stored.step).all()
        assert stored.step >= reached
        reached = stored.step
assert reached > 5, reached
"""


def test_a_process_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_type_is_written_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {
        "bool": torch.tensor([True, False, True]),
        "float32": torch.randn(3, 5).t(),
        "bfloat16": torch.randn(3).bfloat16(),
        "int64": torch.tensor(2**40),
        "float64": torch.randn(2, 1, 2, dtype=torch.float64),
    }
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        digest = write_tensors(file, tensors)
    assert digest == digest_of_file(path)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())


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


def test_states_whose_manifests_are_gone_are_not_overwritten(saved: Checkpoints) -> None:
    (saved.folder / "step-00000003.json").unlink()
    assert read(saved) == (2, 2.0)
    assert saved.unfinished == [3]
    (saved.folder / "step-00000002.json").unlink()
    with pytest.raises(UserError, match=r"holds the states after steps 3, 2 but not their manifests \(step-00000003\.json\)"):
        saved.newest()
    (saved.folder / "step-00000002.0.safetensors").unlink()  # what a run that was killed in its first save leaves
    assert saved.newest() is None
    assert saved.unfinished == [3]
