"""Sharded weights give what whole ones give, and their checkpoints continue on any number of processes."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from beitkit.configs.model import BackboneConfig
from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Manifest, Piece, parse_manifest
from beitkit.train.machine.processes import Processes
from beitkit.train.machine.runtime import Runtime
from beitkit.train.parallel import shares_out

PROGRAM = Path(__file__).with_name("two_sharded.py")
STEPS = 8


class Found(NamedTuple):
    """What the two processes left behind."""

    folder: Path
    first: dict[str, Any]
    second: dict[str, Any]

    def values(self, run: str, kind: str, name: str) -> list[float]:
        lines = (self.folder / run / "journal.jsonl").read_text().splitlines()
        return [event.get(name, math.nan) for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, launch_two: Callable[[list[str]], list[tuple[int, str]]]) -> Found:
    folder = tmp_path_factory.mktemp("sharded")
    ended = launch_two([str(PROGRAM), str(folder)])
    assert [code for code, _ in ended] == [0, 0], ended
    return Found(folder, *(torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in (0, 1)))


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], left_out: tuple[str, ...] = ()) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if name not in left_out:
            torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("run", ["", "poisoned ", "bfloat16 "])
def test_sharded_weights_end_where_whole_ones_do(found: Found, run: str) -> None:
    full, none = found.first[f"{run}full"], found.first[f"{run}none"]
    assert_close(full["state"], none["state"])
    assert_close(full["best"], none["best"])
    full_run, none_run = (f"{run}{kind}".replace(" ", "-") for kind in ("full", "none"))
    for kind, name in (("train", "loss"), ("train", "grad_norm"), ("evaluate", "val/minus_error")):
        values = found.values(full_run, kind, name)
        assert len(values) == (STEPS if kind == "train" else 3)
        assert values == pytest.approx(found.values(none_run, kind, name), rel=1e-5, nan_ok=True)
    assert max(found.values(full_run, "train", "grad_norm")) > 0.5, "nothing was clipped"


@pytest.mark.parametrize("kind", ["full", "none"])
def test_a_step_that_was_not_applied_is_undone_in_buffers_too(found: Found, kind: str) -> None:
    """Every process counts its passes; pass 9, of the third step, is poisoned on one of them."""
    for process in (found.first, found.second):
        seen = len(process[f"{kind}"]["seen"])
        assert len(process[f"poisoned {kind}"]["seen"]) == seen
        # Sharded, the objective of the second process is left as it was; the main process has the result.
        if kind == "none" or process is found.first:
            assert process[kind]["state"]["passes"] == seen
            assert process[f"poisoned {kind}"]["state"]["passes"] == seen - 2


def test_processes_refuse_the_same_steps_in_float16(found: Found) -> None:
    """Gradients that overflow are rows of one process, where weights are sharded, and all leave the step out."""
    full, none = (found.first[f"float16 {kind}"] for kind in ("full", "none"))
    for name in ("refused", "loss_scale"):
        values = found.values("float16-full", "train", name)
        assert values == found.values("float16-none", "train", name)
    assert 0 < found.values("float16-full", "train", "refused")[-1] < STEPS
    # Both ways add gradients up in another order, and rounding to 11 bits follows.
    for name, tensor in full["state"].items():
        torch.testing.assert_close(tensor, none["state"][name], rtol=1e-3, atol=1e-3, msg=name)


def test_bfloat16_is_not_float32(found: Found) -> None:
    """Else that both ways agree in it would say nothing."""
    rounded, exact = found.first["bfloat16 full"]["state"], found.first["full"]["state"]
    assert max((rounded[name] - tensor).abs().max().item() for name, tensor in exact.items()) > 1e-4


def test_units_are_gathered_in_bfloat16_and_only_their_matrices(found: Found) -> None:
    """Two passes of a process in each of 8 steps, each of which gathers three units of 5x5 padded to 6x5 forward and backward."""
    matrices = ["layer.weight bfloat16"]
    small = ["layer.bias float32", "scale float32"]
    # The second process, as the first one evaluates whole weights besides.
    assert found.second["bfloat16 full"]["used"] == sorted([*matrices, *small])
    assert found.second["full"]["used"] == found.second["bfloat16 none"]["used"] == sorted(["layer.weight float32", *small])
    assert found.first["gathered full"]["bfloat16"] == 8 * 2 * 2 * 3 * 30 * 2
    assert "bfloat16" not in found.first["gathered none"]


def test_whole_weights_are_in_the_main_process_alone(found: Found) -> None:
    assert found.first["full"]["elements"] == found.first["none"]["elements"] == found.second["none"]["elements"] > 100
    assert found.second["full"]["elements"] == 0
    assert not found.second["full"]["best"]


def test_small_networks_are_not_sharded_by_themselves(found: Found) -> None:
    for name, tensor in found.first["auto"]["state"].items():
        assert torch.equal(tensor, found.first["none"]["state"][name]), name
    assert found.second["auto"]["elements"] == found.first["auto"]["elements"]


@pytest.mark.parametrize(
    ("run", "first", "second"),
    [
        ("legs", [[0, 2, 4, 6, 8, 10], [*range(12, 20)], [*range(20, 32, 2)]], [[1, 3, 5, 7, 9, 11], [*range(21, 32, 2)]]),
        ("changed", [[0, 2, 4, 6, 8, 10], [12, 14, 16, 18], [*range(20, 32, 2)]],
         [[1, 3, 5, 7, 9, 11], [13, 15, 17, 19], [*range(21, 32, 2)]]),
        ("begun alone", [[*range(12)], [12, 14, 16, 18], [*range(20, 32)]], [[13, 15, 17, 19]]),
    ],
)  # fmt: skip
def test_a_run_continues_on_other_processes_and_in_the_other_way(
    found: Found, run: str, first: list[list[int]], second: list[list[int]]
) -> None:
    assert found.first[f"seen {run}"] == first
    assert found.second[f"seen {run}"] == second
    assert_close(found.first[run]["state"], found.first["none"]["state"], left_out=("passes",))
    assert found.values(run, "train", "loss") == pytest.approx(found.values("none", "train", "loss"), rel=1e-5)


def test_each_process_stores_only_its_rows(found: Found) -> None:
    manifest = parse_manifest((found.folder / "full/checkpoints/step-00000008.json").read_bytes())
    assert [tuple(rows) for rows in manifest.tensors["parameter.units.0.layer.weight"].rows] == [(0, 0, 3), (1, 3, 5)]
    assert [tuple(rows) for rows in manifest.tensors["exp_avg.embedding.weight"].rows] == [(0, 0, 3), (1, 3, 5)]
    assert [tuple(rows) for rows in manifest.tensors["average.units.1.scale"].rows] == [(0, 0, 1)]
    assert [tuple(rows) for rows in manifest.tensors["buffer.passes"].rows] == [(0, 0, 1)]
    assert "parameter.same_head.weight" not in manifest.tensors  # it is head.weight
    whole = parse_manifest((found.folder / "none/checkpoints/step-00000008.json").read_bytes())
    assert list(whole.files) == [0]
    assert {name: stored.shape for name, stored in whole.tensors.items()} == {
        name: stored.shape for name, stored in manifest.tensors.items()
    }


def restored(checkpoints: Checkpoints) -> tuple[int, dict[str, torch.Tensor]]:
    """Step and tensors of the newest checkpoint, read by one process."""
    stored = checkpoints.newest()
    assert stored is not None
    tensors = {
        name: Piece(torch.full(entry.shape, 7, dtype=torch.int64 if name.startswith("buffer") else torch.float32), entry.shape)
        for name, entry in stored.tensors.items()
    }
    checkpoints.restore(stored, tensors)
    return stored.step, {name: piece.rows for name, piece in tensors.items()}


def test_one_process_reads_what_two_wrote(found: Found) -> None:
    step, tensors = restored(Checkpoints(found.folder / "full/checkpoints"))
    assert step == STEPS
    averages = {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}
    final = {name: value for name, value in found.first["full"]["state"].items() if name in averages}
    assert len(averages) == 14
    assert all(torch.equal(averages[name], value) for name, value in final.items())
    assert {value.item() for name, value in tensors.items() if name.startswith("step.")} == {8.0}


def test_some_rows_are_read_across_files(found: Found) -> None:
    checkpoints = Checkpoints(found.folder / "full/checkpoints")
    stored = checkpoints.newest()
    assert stored is not None
    _, whole = restored(checkpoints)
    pieces = {name: Piece(tensor, tuple(tensor.shape)) for name, tensor in whole.items()}
    name = "exp_avg.units.2.layer.weight"
    pieces[name] = Piece(torch.zeros(2, 5), (5, 5), 2)  # row 2 is the first process's last, row 3 the second's first
    checkpoints.restore(stored, pieces)
    assert torch.equal(pieces[name].rows, whole[name][2:4])


@pytest.mark.parametrize("size", ["empty", "half", "all but one", "missing"])
@pytest.mark.parametrize("name", ["step-00000008.0.safetensors", "step-00000008.1.safetensors", "step-00000008.json"])
def test_a_torn_shard_falls_back_to_the_checkpoint_before(found: Found, tmp_path: Path, name: str, size: str) -> None:
    folder = shutil.copytree(found.folder / "legs/checkpoints", tmp_path / "checkpoints")
    path = folder / name
    whole = path.stat().st_size
    if size == "missing":
        path.unlink()
    else:
        os.truncate(path, {"empty": 0, "half": whole // 2, "all but one": whole - 1}[size])
    assert restored(Checkpoints(folder))[0] == 7


def test_shards_of_two_checkpoints_are_not_mixed(found: Found, tmp_path: Path) -> None:
    folder = shutil.copytree(found.folder / "legs/checkpoints", tmp_path / "checkpoints")
    shutil.copy(folder / "step-00000007.1.safetensors", folder / "step-00000008.1.safetensors")
    assert restored(Checkpoints(folder))[0] == 7


def test_a_signal_to_one_process_stores_the_shards_of_both(found: Found) -> None:
    assert found.first["stopped"] == found.second["stopped"]
    assert found.first["stopped"].startswith("stopped after step 4 of 8")
    names = sorted(path.name for path in (found.folder / "stopped/checkpoints").glob("step-00000004*"))
    assert names == ["step-00000004.0.safetensors", "step-00000004.1.safetensors", "step-00000004.json"]


def test_a_network_without_blocks_cannot_be_sharded(found: Found) -> None:
    assert found.first["no units"] == (
        "`speed.sharding='full'` shards the blocks of a Transformer, and this network has none; leave it out"
    )


@pytest.mark.parametrize(("name", "is_sharded"), [("base/16", False), ("large/16", True), ("huge/14", True), ("giant/14", True)])
def test_large_networks_are_sharded_by_themselves(name: str, is_sharded: bool) -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig.named(name, mask_token=True))
        without_blocks = nn.Linear(20_000, 20_000)
    runtime = Runtime(torch.device("meta"), None, Processes(0, 8), sharding="auto")
    assert shares_out(backbone, runtime) == is_sharded
    assert not shares_out(without_blocks, runtime)
    assert not shares_out(backbone, replace(runtime, sharding="none"))
    assert not shares_out(backbone, replace(runtime, processes=Processes(0, 1), sharding="full"))


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["tensors"]["weight"]["rows"][0].__setitem__(0, "../../etc/passwd"),
        lambda m: m["tensors"]["weight"]["rows"][0].__setitem__(0, 1),
        lambda m: m["tensors"]["weight"]["rows"][0].__setitem__(1, -1),
        lambda m: m["tensors"]["weight"]["rows"][0].__setitem__(2, 2**70),
        lambda m: m["tensors"]["weight"]["rows"].append([0, 2, 4]),
        lambda m: m["tensors"]["weight"].__setitem__("rows", []),
        lambda m: m["tensors"]["weight"].__setitem__("shape", [4.0]),
        lambda m: m["tensors"].__setitem__("weight", None),
        lambda m: m["files"].__setitem__("../x", m["files"].pop("0")),
        lambda m: m["files"]["0"].__setitem__("bytes", 2**70),
        lambda m: m["files"]["0"].__setitem__("blake2b", "0" * 32),
        lambda m: m["numbers"].__setitem__("best", "inf"),
        lambda m: m.__setitem__("numbers", [1]),
        lambda m: m.__setitem__("format", 2),
        lambda m: m.__setitem__("step", 4),
        lambda m: m.pop("files"),
    ],
)
def test_a_manifest_that_is_not_sound_is_refused(tmp_path: Path, edit: Edit) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"weight": Piece(torch.arange(4.0), (4,))}, {"best": 1.0})
    path = tmp_path / "step-00000003.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* is whole; remove that folder") as refused:
        checkpoints.newest()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("piece", "sentence"),
    [
        (Piece(torch.zeros(5), (5,)), "the state of another network"),
        (Piece(torch.zeros(2), (2**60,)), "the state of another network"),
        (Piece(torch.zeros(4, dtype=torch.float64), (4,)), "the state of another network"),
        (Piece(torch.zeros(4, 1), (4, 1)), "the state of another network"),
    ],
)
def test_a_checkpoint_of_other_tensors_is_refused(tmp_path: Path, piece: Piece, sentence: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"weight": Piece(torch.arange(4.0), (4,))}, {})
    stored = checkpoints.newest()
    assert stored is not None
    with pytest.raises(UserError, match=sentence):
        checkpoints.restore(stored, {"weight": piece})


def test_a_manifest_that_says_more_than_its_file_is_refused(tmp_path: Path) -> None:
    """Digest and size are right, but the file has fewer rows than it is said to have."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"weight": Piece(torch.arange(4.0), (4,))}, {})
    path = tmp_path / "step-00000003.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    manifest["tensors"]["weight"].update(shape=[9], rows=[[0, 0, 9]])
    path.write_text(json.dumps(manifest))
    stored = checkpoints.newest()
    assert stored is not None
    with pytest.raises(UserError, match="does not hold what its manifest says"):
        checkpoints.restore(stored, {"weight": Piece(torch.zeros(9), (9,))})


def test_a_save_that_ends_before_its_manifest_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"weight": Piece(torch.arange(4.0), (4,))}, {})

    def fail(manifest: Manifest) -> bytes:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "encode", fail)
        with pytest.raises(RuntimeError, match="killed"):
            checkpoints.save(4, {"weight": Piece(torch.ones(4), (4,))}, {})
    assert (tmp_path / "step-00000004.0.safetensors").exists()
    step, tensors = restored(checkpoints)
    assert step == 3
    assert torch.equal(tensors["weight"], torch.arange(4.0))
    checkpoints.save(5, {"weight": Piece(torch.ones(4), (4,))}, {})
    assert not list(tmp_path.glob("step-00000004*")), "what the killed save left was kept"
