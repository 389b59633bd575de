"""PyTorch's files read as torch itself reads them, and hostile ones refused with one line and nothing run."""

from __future__ import annotations

import argparse
import collections
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from beitkit.errors import UserError
from beitkit.interop.load import load, load_tokenizer
from beitkit.interop.reading.unpickle import Inert, read_pickled, tensors_of

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def saved(path: Path, content: Any, is_zip: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


@FORMATS
def test_tensors_of_every_kind(is_zip: bool, tmp_path: Path) -> None:
    base = torch.arange(60.0).view(5, 12)
    state = {
        "float": torch.randn(3, 4),
        "parameter": nn.Parameter(torch.randn(2)),
        "transposed": torch.randn(5, 6).t(),
        "part": base[1:4, 2:7],
        "same storage": base,
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3, 1).bfloat16(),
        "scalar": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    unpickled = read_pickled(saved(tmp_path / "x.pth", collections.OrderedDict(state), is_zip))
    stored = unpickled.state(tensors_of(unpickled.root))
    assert list(stored) == list(state)
    for name, tensor in state.items():
        assert stored[name].shape == tuple(tensor.shape)
        read = stored[name].read()
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor.detach()), name


@FORMATS
def test_what_lies_beside_the_weights(is_zip: bool, tmp_path: Path) -> None:
    content = {
        "model": {"a": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1, output=PurePosixPath("x"), folder=Path("y"), device=torch.device("cpu"), names=["a"]),
        "best": np.float64(0.5),
        "history": np.arange(3),
        "seen": {1, 2},
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
        "epoch": 3,
    }
    content["args"].output = None
    root = read_pickled(saved(tmp_path / "x.pth", content, is_zip)).root
    assert isinstance(root["args"], Inert)
    assert root["args"].attributes["lr"] == 0.1
    assert root["args"].attributes["names"] == ["a"]
    assert root["epoch"] == 3
    assert list(tensors_of(root["model"])) == ["a"]


@FORMATS
def test_a_whole_module_of_the_known_skeleton(is_zip: bool, tmp_path: Path) -> None:
    module = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2)), nn.Identity())
    module.register_parameter("w", nn.Parameter(torch.randn(2)))
    module[1].register_buffer("b", torch.randn(3))
    unpickled = read_pickled(saved(tmp_path / "x.pkl", module, is_zip))
    stored = unpickled.state(tensors_of(unpickled.root))
    expected = module.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name].read(), expected[name]) for name in expected)


class Runs:
    """Pickles as a call of whatever it is told."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def stream(*opcodes: bytes) -> bytes:
    """A pickle of protocol 2 written by hand."""
    return b"\x80\x02" + b"".join(opcodes) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile(canary: str) -> dict[str, Any]:
    """Contents that would make the canary if anything in them were run. Bytes are a ready pickle."""
    touch = f"touch {canary}"
    code = f"open({canary!r}, 'w')"
    system = Runs(os.system, touch)
    poisoned = argparse.Namespace(lr=system)
    tensor = torch.ones(2)
    hooked = nn.Sequential(nn.ReLU())
    hooked.__dict__["_forward_hooks"] = {0: Runs(eval, code)}
    return {
        "os.system": system,
        "nested": {"model": {"a": [({"b": system},)]}},
        "as an attribute of a Namespace": {"model": {"a": tensor}, "args": poisoned},
        "eval": {"model": Runs(eval, code)},
        "exec": {"model": Runs(exec, code)},
        "subprocess": {"model": Runs(subprocess.check_call, touch, 0)},
        "getattr": {"model": Runs(getattr, tensor, "numpy")},
        "import": {"model": Runs(__import__, "antigravity")},
        "a file": {"model": Runs(open, canary, "w")},
        "a path": {"model": Runs(Path.touch, Path(canary))},
        "another pickle": {"model": Runs(pickle.loads, pickle.dumps(system))},
        "torch.load": {"model": Runs(torch.load, canary)},
        "torch's bytes loader": {"model": Runs(torch.storage._load_from_bytes, b"x")},
        "reconstructor": {"model": Runs(copyreg._reconstructor, dict, object, None)},
        "module with a hook": hooked,
        "unknown module": {"model": nn.Linear(2, 2)},
        "INST": stream(b"(", text(touch), b"ios\nsystem\n"),
        "OBJ": stream(b"(", b"cos\nsystem\n", text(touch), b"o"),
        "NEWOBJ": stream(b"csubprocess\nPopen\n", b"(", text(touch), b"t\x81"),
        "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(touch) + b"\x85R.",
        "dotted name": stream(b"ctorch\n_utils.os.system\n", text(touch), b"\x85R"),
        "name with a line break": b"\x80\x04" + text("os\nimport os") + text("system") + b"\x93.",
        "extension": stream(b"\x82\x01", text(touch), b"\x85R"),
        "attribute of a stand-in class": stream(b"cargparse\nNamespace\n", b"N}", text("__init__"), b"cos\nsystem\n", b"s\x86b"),
    }


NAMES = list(hostile("x"))


@pytest.mark.parametrize("container", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_hostile_files_are_refused_and_run_nothing(name: str, container: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    content = hostile(str(canary))[name]
    pickled = content if isinstance(content, bytes) else None
    if container == "zip":
        if pickled is None:
            saved(path, content, True)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", pickled)
                archive.writestr("archive/version", "3\n")
    elif pickled is None and container == "legacy":
        saved(path, content, False)
    else:
        header = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes((header if container == "legacy" else b"") + (pickled or pickle.dumps(content)))
    modules = set(sys.modules)
    for reader in (read_pickled, load, load_tokenizer):
        with pytest.raises(UserError) as caught:
            reader(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert not canary.exists()
    assert "antigravity" not in set(sys.modules) - modules


def test_the_refused_name_is_shown(tmp_path: Path) -> None:
    path = saved(tmp_path / "evil.pth", {"model": Runs(os.system, "true")}, True)
    with pytest.raises(UserError, match=r"evil.pth refused: it names (posix|nt)\.system, which no checkpoint needs"):
        load(path)


def test_stand_ins_do_not_outlive_a_file(tmp_path: Path) -> None:
    """A file may set attributes on the classes it names; the next file, and the real classes, know nothing of it."""
    path = tmp_path / "x.pth"
    pollute = stream(b"cargparse\nNamespace\n", b"N}", text("lr"), b"K\x01", b"s\x86b")
    for _ in range(2):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pollute)
        with pytest.raises(UserError):
            load(path)
    assert not hasattr(argparse.Namespace, "lr")
    assert not hasattr(Inert, "lr")
    assert collections.OrderedDict([(1, 2)])[1] == 2


def tampered(tmp_path: Path, change: Callable[[bytes], bytes]) -> Path:
    """A file whose pickle was edited."""
    source = saved(tmp_path / "x.pth", {"model": {"a": torch.ones(2, 3)}}, True)
    target = tmp_path / "tampered.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            new.writestr(record.filename, change(content) if record.filename.endswith("data.pkl") else content)
    return target


def test_a_tensor_that_reaches_beyond_its_bytes(tmp_path: Path) -> None:
    larger = tampered(tmp_path, lambda content: content.replace(b"K\x02K\x03\x86", b"K\x63K\x63\x86"))
    with pytest.raises(UserError, match="reaches beyond"):
        load(larger)
    shifted = tampered(tmp_path, lambda content: content.replace(b"K\x00K\x02K\x03\x86", b"K\x09K\x02K\x03\x86"))
    with pytest.raises(UserError, match="reaches beyond"):
        load(shifted)


def test_a_tensor_that_repeats_its_bytes_without_end(tmp_path: Path) -> None:
    """Strides of zero would make a few bytes fill the memory."""
    path = saved(tmp_path / "x.pth", {"model": {"a": torch.ones(1).expand(1000, 1000)}}, True)
    with pytest.raises(UserError, match="reaches beyond"):
        load(path)


def test_damaged_files(tmp_path: Path) -> None:
    whole = saved(tmp_path / "x.pth", {"model": {"a": torch.ones(1000)}}, True).read_bytes()
    legacy = saved(tmp_path / "y.pth", {"model": {"a": torch.ones(1000)}}, False).read_bytes()
    for index, content in enumerate(
        (b"", b"PK\x03\x04", whole[:-200], whole[: len(whole) // 2], legacy[:-100], legacy[:60], b"\0" * 99)
    ):
        path = tmp_path / f"{index}.pth"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_other_archives_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match="tar archive"):
        load(tmp_path / "old.pth")
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    with pytest.raises(UserError, match="no PyTorch checkpoint"):
        load(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**20)
    with pytest.raises(UserError, match="compressed"):
        load(tmp_path / "bomb.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/code/__torch__.py", "")
    with pytest.raises(UserError, match="TorchScript"):
        load(tmp_path / "script.pt")


def test_a_module_that_contains_itself(tmp_path: Path) -> None:
    module = nn.Sequential(nn.ReLU())
    module._modules["0"] = module
    with pytest.raises(UserError, match="nested"):
        load_tokenizer(saved(tmp_path / "x.pkl", module, True))
