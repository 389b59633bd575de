"""Files that are none, and files made to do harm: cases for `sweep.py`, each with everything that may read it.

A case lies in a folder of its own. Whoever reads it may raise a `UserError` of one line, or read what is good of it; it must not
wait, take much memory, run anything, or write outside that folder. The builders are those of the tests beside the readers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from beitkit.command.config_file import read_config
from beitkit.data.decoding.decode import BrokenImage, open_image
from beitkit.data.decoding.raw import read_raw
from beitkit.data.scenes.masks import read_mask
from beitkit.data.sources.archives import archive_images, archives_at
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.index import open_index, write_index
from beitkit.errors import UserError
from beitkit.interop.formats.native import DESCRIPTION, WEIGHTS
from beitkit.interop.inspect import inspect_checkpoint
from beitkit.interop.load import load, load_tokenizer
from beitkit.interop.reading.unpickle import read_pickled
from beitkit.train.checkpoints.checkpoint import Checkpoints
from tests.data.sources import test_tar as tars
from tests.faults import test_odd_files as odd_files
from tests.interop.reading import test_unpickle as pickles

REFUSED = (UserError, BrokenImage)


class Case(NamedTuple):
    """Something bad, and who reads it."""

    name: str
    make: Callable[[Path], Path]
    """Lays it into an empty folder; returns the path that is read."""
    read: Callable[[Path], object]
    must_refuse: bool = False
    """Whether reading on is no answer."""


def _socket(path: Path) -> None:
    """A socket that nobody listens to; its path may be no longer than a hundred characters."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as unheard:
            unheard.bind(path.name)
    finally:
        os.chdir(before)


ODD: dict[str, Callable[[Path], object]] = {
    **odd_files.KINDS_OF_ODD,
    "socket": _socket,
    "link to nothing": lambda path: path.symlink_to(path.with_name("nothing")),
    "empty": lambda path: path.touch(),
    "a page": lambda path: path.write_bytes(b"<html><body>Not found</body></html>\n" * 30),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "link to a device": lambda path: path.symlink_to("/dev/null"),
}


def odd_cases(good: Path) -> Iterator[Case]:
    """Every kind of odd file in every place where one may be named or found; `good` is what `lay_out_good` made."""
    readers: dict[str, Callable[[Path], object]] = {
        **odd_files.READERS,
        "a.npy": read_raw,
        "mask.png": read_mask,
        "options.toml": read_config,
    }
    for kind, make in ODD.items():
        for name, read in readers.items():
            yield Case(f"{kind} as {name}", _alone(name, make), read)
        yield Case(f"{kind} as a JPEG", _alone("a.jpg", make), lambda path: open_image(path, 3), must_refuse=True)
        yield Case(f"{kind} among images", _beside(good / "photos", "a/0.jpg", make), _images_are_left)
        yield Case(f"{kind} as weights", _beside(good / "model", WEIGHTS, make), load, must_refuse=True)
        yield Case(f"{kind} as a model's description", _beside(good / "model", DESCRIPTION, make), load, must_refuse=True)
        yield Case(f"{kind} as a manifest", _beside(good / "checkpoints", "step-00000002.json", make), _falls_back)


def _alone(name: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        make(folder / name)
        return folder / name

    return lay


def _beside(good: Path, name: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A copy of something good, in which one file is odd."""

    def lay(folder: Path) -> Path:
        shutil.copytree(good, folder / good.name)
        path = folder / good.name / name
        path.unlink(missing_ok=True)
        make(path)
        return folder / good.name

    return lay


def _images_are_left(folder: Path) -> None:
    found = find_labeled(folder)
    decoded = 0
    for index in range(len(found)):
        try:
            open_image(found.path(index), 3)
            decoded += 1
        except BrokenImage:
            continue
    assert decoded == 4, f"{decoded} of the 4 good images were read"


def _falls_back(folder: Path) -> None:
    manifest = Checkpoints(folder).newest()
    assert manifest is not None
    assert manifest.step == 1


def lay_out_good(room: Path) -> None:
    """Images, a packed archive, a model and two checkpoints, all of them good."""
    from dataclasses import replace

    import beitkit
    from beitkit.configs.model import ClassifierConfig
    from beitkit.interop.formats.native import save_native
    from beitkit.nn.models import Classifier
    from beitkit.train.checkpoints.manifest import Piece

    for label in ("a", "b"):
        (room / "photos" / label).mkdir(parents=True)
        for number in range(1, 3):
            Image.new("RGB", (20, 20), (number * 40, 90, 200)).save(room / "photos" / label / f"{number}.png")
    with contextlib.redirect_stdout(io.StringIO()):
        beitkit.pack(room / "photos", out=room / "packed", labels=True)
    found = archives_at(room / "packed")
    assert found is not None
    write_index(room / "packed" / "x.index", archive_images(found, labeled=True))
    config = ClassifierConfig(backbone=replace(odd_files.BACKBONE), classes=("a", "b"))
    save_native(Classifier(config), room / "model")
    torch.save(Classifier(config).state_dict(), room / "whole.pth")
    for step in (1, 2):
        Checkpoints(room / "checkpoints").save(step, {"weight": Piece(torch.zeros(50), (50,))}, {})


def hostile_cases(good: Path, canary: Path) -> Iterator[Case]:
    """Archives, indexes, pickles and safetensors of those who mean harm; what they would run makes `canary`."""
    for name, content in pickles.hostile(str(canary)).items():
        for container in ("zip", "legacy", "plain"):
            lay = _poisoned(content, container)
            yield Case(f"pickle, {name}, {container}, as a network", lay, load, must_refuse=True)
            yield Case(f"pickle, {name}, {container}, as a tokenizer", lay, load_tokenizer, must_refuse=True)
            yield Case(f"pickle, {name}, {container}, looked at", lay, inspect_checkpoint, must_refuse=True)
            in_folder = _in_folder_of_transformers(lay)
            yield Case(f"pickle, {name}, {container}, in a folder", in_folder, load, must_refuse=True)
    for number, content in enumerate(odd_files.GREEDY):
        yield Case(f"greedy pickle {number}", _file("a.pth", content), load, must_refuse=True)
    for name, (make, _) in tars.HOSTILE.items():
        yield Case(f"tar, {name}", _file("a.tar", make()), find_images)
        yield Case(f"tar, {name}, labeled", _file("a.tar", make()), find_labeled)
    for name, content in _archives_that_reach_out().items():
        yield Case(f"tar, {name}", _file("a.tar", content), _members_read)
    for name, change in odd_files.BAD_INDEXES.items():
        yield Case(f"index, {name}", _bad_index(good, change), lambda path: open_index(str(path), labeled=True), must_refuse=True)
    for name, content in _lying_safetensors((good / "model" / WEIGHTS).read_bytes()).items():
        yield Case(f"safetensors, {name}", _beside(good / "model", WEIGHTS, _writes(content)), load, must_refuse=True)
        yield Case(f"safetensors, {name}, alone", _file("a.safetensors", content), load, must_refuse=True)
    for name, make in _lying_zips(good / "whole.pth").items():
        yield Case(f"zip, {name}", make, load)
    for shape, stride in (((500_000_000,), (0,)), ((2**40,), (1,)), ((4, 2**30), (1, 0)), ((3,), (-1,)), ((2**62, 4), (0, 1))):
        yield Case(f"tensor of {shape} by {stride}", _lying_tensor(shape, stride), _tensors_read, must_refuse=True)


def _writes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    return _alone(name, _writes(content))


def _poisoned(content: Any, container: str) -> Callable[[Path], Path]:
    """As `test_unpickle` puts it into a file."""

    def lay(folder: Path) -> Path:
        path = folder / "evil.pth"
        pickled = content if isinstance(content, bytes) else None
        if container == "zip" and pickled is not None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", pickled)
                archive.writestr("archive/version", "3\n")
        elif pickled is None and container != "plain":
            pickles.saved(path, content, container == "zip")
        else:
            header = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
            path.write_bytes((header if container == "legacy" else b"") + (pickled or pickle.dumps(content)))
        return path

    return lay


def _in_folder_of_transformers(lay: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def in_folder(folder: Path) -> Path:
        lay(folder).rename(folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps({"model_type": "beit", "image_size": 32, "num_attention_heads": 2}))
        return folder

    return in_folder


def _archives_that_reach_out() -> dict[str, bytes]:
    """Names and links that lead out of the folder, and members that are no images."""
    image = io.BytesIO()
    Image.new("RGB", (9, 9)).save(image, "PNG")
    png, found = image.getvalue(), {}
    for name in (
        "../../out.png",
        "/tmp/beitkit-out.png",
        "a/../../../out.png",
        "..\\out.png",
        "a\0b.png",
        "\x1b[2J.png",
        "pipe:x",
    ):
        found[f"member {name!r}"] = tars.archive((name, png), ("b.png", png), kind=tarfile.GNU_FORMAT)
    for name in ("x.pyd", "x.pickle", "x.pth", "x.py", "x.json", "x.npy"):
        evil = pickle.dumps(pickles.Runs(os.system, "true"))
        found[f"member {name}"] = tars.archive((name, evil), ("x.png", png), ("x.cls", b"0"))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "../../../etc/passwd"
            tar.addfile(info)
        found[f"member of type {kind!r}"] = file.getvalue()
    for text in (b"-1", b"9" * 400, b"1e99", b"\xff", b"0\n0", b""):
        found[f"label {text[:9]!r}"] = tars.archive(("x.png", png), ("x.cls", text))
    found["one name many times"] = tars.archive(*[("x.png", png)] * 500, ("x.cls", b"0"))
    found["no member but its end"] = tars.END
    return found


def _members_read(path: Path) -> None:
    found = archives_at(path)
    assert found is not None
    for labeled in (False, True):
        try:
            files = archive_images(found, labeled=labeled)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        assert files.members is not None
        for number in range(min(3, len(files))):
            files.members.read(number)
            repr(files.path(number))


def _bad_index(good: Path, change: Any) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        shutil.copytree(good / "packed", folder / "packed")
        odd_files.rewritten(folder / "packed" / "x.index", change)
        return folder / "packed" / "x.index"

    return lay


def _lying_safetensors(whole: bytes) -> dict[str, bytes]:
    """Headers that promise what is not there."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    first = next(name for name in header if name != "__metadata__")

    def written(changed: dict[str, Any] | bytes, claimed: int | None = None) -> bytes:
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data

    entry = header[first]
    return {
        "header of 2^63 bytes": written(header, 2**63),
        "header of 100 MB": written(header, 10**8),
        "header of 0 bytes": written(header, 0),
        "header that is no JSON": written(b"{" * length),
        "deep header": written(b"[" * 100_000),
        "shape of 2^62": written(header | {first: entry | {"shape": [2**62, 4]}}),
        "negative shape": written(header | {first: entry | {"shape": [-1]}}),
        "offsets beyond": written(header | {first: entry | {"data_offsets": [0, 2**40]}}),
        "offsets run back": written(header | {first: entry | {"data_offsets": [8, 0]}}),
        "offsets of another": written(header | {first: entry | {"data_offsets": [0, 4]}}),
        "unknown type": written(header | {first: entry | {"dtype": "F99"}}),
        "type of another size": written(header | {first: entry | {"dtype": "F64"}}),
        "twenty thousand names": written(
            header | {f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
        ),
        "a name that writes to the terminal": written(
            header | {"\x1b]0;x\x07": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
        ),
        "cut": whole[: len(whole) // 2],
    }


def _lying_zips(whole: Path) -> dict[str, Callable[[Path], Path]]:
    """Archives of PyTorch with other records than it writes."""

    def lay(change: Callable[[str, bytes], tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
        def rewrite(folder: Path) -> Path:
            with zipfile.ZipFile(whole) as old, zipfile.ZipFile(folder / "a.pth", "w", compression) as new:
                for record in old.infolist():
                    new.writestr(*change(record.filename, old.read(record)))
            return folder / "a.pth"

        return rewrite

    return {
        "as it was": lay(lambda name, content: (name, content)),
        "compressed": lay(lambda name, content: (name, content), zipfile.ZIP_DEFLATED),
        "a bomb": lay(lambda name, content: (name, content + bytes(2**26)), zipfile.ZIP_DEFLATED),
        "names that lead out": lay(lambda name, content: (f"../../{name}", content)),
        "absolute names": lay(lambda name, content: (f"/tmp/{name}", content)),
        "records cut": lay(lambda name, content: (name, content[:-4] if "/data/" in name else content)),
        "big-endian": lay(lambda name, content: (name, b"big" if name.endswith("byteorder") else content)),
    }


def _lying_tensor(shape: tuple[int, ...], stride: tuple[int, ...]) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        odd_files.lying(folder / "a.pth", shape, stride)
        return folder / "a.pth"

    return lay


def _tensors_read(path: Path) -> None:
    read = read_pickled(path)
    for tensor in read.state(pickles.tensors_of(read.root)).values():
        tensor.read()
