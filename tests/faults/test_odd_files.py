"""Files that are none (pipes, devices, links to themselves), and files whose content was made to do harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import ReadLimit
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.data.decoding.decode import BrokenImage, open_image
from beitkit.data.decoding.limit import reading_up_to
from beitkit.data.scenes.label_codes import read_classes
from beitkit.data.sources.archives import archive_images, archives_at
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.index import _checksum, open_index, write_index
from beitkit.data.sources.parquet import parquet_images
from beitkit.errors import UserError
from beitkit.files import DEEPEST, opened_regular, parse_json, read_json, read_regular
from beitkit.interop.formats.native import DESCRIPTION, WEIGHTS, save_native
from beitkit.interop.load import load
from beitkit.interop.reading.unpickle import check_program, read_pickled, tensors_of
from beitkit.nn.models import Classifier
from beitkit.report.journal import read_journal
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.journal import Journal

BACKBONE = replace(BackboneConfig.named("nano/16", image_size=32), width=12, depth=2, heads=2, hidden=16, final_norm=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders with two images each."""
    folder = tmp_path / "photos"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 20), (number * 40, 90, 200)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_native(Classifier(ClassifierConfig(backbone=BACKBONE, classes=("a", "b"))), tmp_path / "model")
    return tmp_path / "model"


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS_OF_ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "endless": endless,
    "link to itself": lambda path: path.symlink_to(path),
    "folder": lambda path: path.mkdir(),
}
READERS: dict[str, Callable[[Path], object]] = {
    "x.index": lambda path: open_index(str(path), labeled=False),
    "a.pth": load,
    "a.safetensors": load,
    "classes.json": read_classes,
    "l.txt": find_images,
    "l.csv": find_labeled,
    "l.jsonl": find_labeled,
    "a.tar": find_images,
    "a.parquet": find_images,
    "journal.jsonl": read_journal,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS_OF_ODD)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, reader: str, tmp_path: Path) -> None:
    path = tmp_path / reader
    KINDS_OF_ODD[kind](path)
    with pytest.raises(UserError) as error:
        READERS[reader](path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_beside_what_is_read(kind: str, photos: Path, model: Path, tmp_path: Path) -> None:
    """`classes.txt` of archives, weights and description of a model, a manifest, in the place of each such a thing."""
    beitkit.pack(photos, out=tmp_path / "packed", labels=True)
    (tmp_path / "packed" / "classes.txt").unlink()
    (tmp_path / "packed" / "pictures.index").unlink(missing_ok=True)
    KINDS_OF_ODD[kind](tmp_path / "packed" / "classes.txt")
    found = archives_at(tmp_path / "packed")
    assert found is not None
    with pytest.raises(UserError, match=r"classes.txt cannot be read: not a regular file"):
        archive_images(found, labeled=True)
    for name in (WEIGHTS, DESCRIPTION):
        (model / name).rename(tmp_path / "kept")
        KINDS_OF_ODD[kind](model / name)
        with pytest.raises(UserError):
            load(model)
        (model / name).unlink()
        (tmp_path / "kept").rename(model / name)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    KINDS_OF_ODD[kind](tmp_path / "checkpoints" / "step-00000005.json")
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        checkpoints.newest()


def test_a_link_to_itself_among_images_is_left_out(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (photos, photos / "a"):
        (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
        (folder / "loop").symlink_to(folder / "loop")
    assert len(find_images(photos)) == 4
    assert len(find_labeled(photos)) == 4
    assert ".jpg that is no regular file" in capsys.readouterr().err


def test_regular_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with opened_regular(path) as file:
        assert file.read() == b"12345"
    with pytest.raises(OSError, match="5 bytes, more than 4"):
        read_regular(path, 4)
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular("/proc/self/status", 4)  # which says that it is empty


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "inside each other"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "inside each other"),
        ('{"a":' * 70 + "1" + "}" * 70, "inside each other"),
        ("1e999", "too large"),
        ("-1e999", "too large"),
        ("NaN", "not JSON"),
        ("[Infinity]", "not JSON"),
        ("9" * 301, "too large"),
        ("-" + "9" * 5000, "too large"),
        ("", "Expecting value"),
        (b"\xff", "decode"),
    ],
)
def test_json_that_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_that_is_read(tmp_path: Path) -> None:
    wide = {"a": [[number] for number in range(200)], "b": "[{" * 100, "c": 1e308}
    (tmp_path / "a.json").write_text(json.dumps(wide))
    assert read_json(tmp_path / "a.json") == wide
    deep = json.loads("[" * DEEPEST + "]" * DEEPEST)
    assert parse_json(json.dumps(deep)) == deep


def changed(content: Any, path: str, value: Any) -> Any:
    first, _, rest = path.partition(".")
    return content | {first: changed(content[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("config.backbone.width", 10**9),
        ("config.backbone.depth", 10**7),
        ("config.backbone.heads", 0),
        ("config.backbone.hidden", 10**9),
        ("config.backbone.layer_scale", 10**400),
        ("config.backbone.image_size", [16 * 10**6, 16]),
        ("config.backbone.image_size", [16 * 10**9, 16 * 10**9]),
        ("config.backbone.patch", [0, 0]),
        ("config.classes", {}),
        ("kind", []),
        ("kind", {}),
        ("format_version", [1] * 1000),
        ("config", [[[]]]),
    ],
)
def test_a_description_that_cannot_be_of_its_weights(where: str, value: Any, model: Path) -> None:
    path = model / DESCRIPTION
    path.write_text(json.dumps(changed(json.loads(path.read_text()), where, value)))
    with pytest.raises(UserError) as error:
        load(model)
    assert "model.json" in str(error.value)
    assert len(str(error.value)) < 1000


def test_an_infinity_in_a_description(model: Path) -> None:
    path = model / DESCRIPTION
    path.write_text(path.read_text().replace('"drop_path": 0.0', '"drop_path": 1e999'))
    with pytest.raises(UserError, match="the number 1e999 is too large"):
        load(model)


def test_many_unknown_keys_make_a_short_message() -> None:
    content = to_json(BACKBONE) | {f"key {number}": 0 for number in range(10_000)}
    with pytest.raises(UserError, match="unknown key 0, ") as error:
        from_json(BackboneConfig, content)
    assert len(str(error.value)) < 2000


def test_a_bad_byte_in_the_journal_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    good = [json.dumps({"kind": "train", "step": step}).encode() + b"\n" for step in (1, 2, 3)]
    path.write_bytes(good[0] + b'{"kind": "tr\xff\xfein", "step": \xff}\n' + b"[" * 5000 + b"\n" + b"[1]\n" + good[1] + good[2])
    Journal(path).rewind(2)
    assert path.read_bytes() == good[0] + good[1]
    assert [event.step for event in read_journal(path)] == [1, 2]


def test_there_is_one_reader_of_json() -> None:
    """A new `json.load` would bring back every fault above."""
    package = Path(beitkit.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "files.py":
            assert not re.search(r"json\.loads?\(|JSONDecoder\(", path.read_text()), f"{path} reads JSON; use beitkit.files"


# Pickles.

LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)


PEAKS = """
import sys
from pathlib import Path
from beitkit.errors import UserError
from beitkit.interop.reading.checkpoints import read_file
from beitkit.system import peak_resident_bytes, reset_peak_memory
for path in sorted(Path(sys.argv[1]).iterdir()):
    reset_peak_memory()
    before, outcome = peak_resident_bytes(), "read"
    try:
        read_file(path)
    except UserError:
        outcome = "refused"
    print(outcome, peak_resident_bytes() - before)
"""
"""What reading each file of a folder takes, in a process of its own."""
GREEDY = (
    b"\x80\x02Nr\xff\xff\xff\x3f.",  # remembers None as object number a thousand million: a table of 8 GB
    b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"x",  # bytes that the file does not have
    b"\x80\x04\x95" + struct.pack("<Q", 2**33) + b"x",  # a frame
    b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x",  # text
    b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x",  # a bytearray
    b"\x80\x02)" + b"\x85" * 200_000 + b"}q\x00h\x00\x86.",  # tuples as deep as the stack
    LEGACY + b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.",  # one of them as the key of a dict: Python itself would crash
)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_few_bytes_of_pickle_take_no_memory(tmp_path: Path) -> None:
    for number, content in enumerate(GREEDY):
        (tmp_path / f"{number}.pth").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", PEAKS, tmp_path], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [outcome for outcome, _ in lines] == ["refused"] * len(GREEDY)
    assert max(int(taken) for _, taken in lines) < 100e6


def test_pickles_that_are_used_pass() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        shared = (1, (2, (3, "x" * 300)))
        content = {"a": [shared, shared, 2**70, 1.5, b"y" * 300, None, True], "b": {(1, 2): shared}, "c": list(range(3000))}
        file = io.BytesIO(b"before" + pickle.dumps(content, protocol) + b"after")
        file.seek(6)
        check_program(file)
        assert pickle.load(file) == content


def lying(path: Path, shape: tuple[int, ...], stride: tuple[int, ...], names: int = 1) -> None:
    """A `.pth` of four numbers that says that its tensors are larger."""
    torch.save({f"w{number}": torch.zeros(4) for number in range(names)} if names == 1 else {"w0": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))

    class Writer(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 2**29) if isinstance(obj, Storage) else None

    class Storage:
        pass

    class Tensor:
        def __init__(self, storage: Storage) -> None:
            self.storage = storage

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (self.storage, 0, shape, stride, False, {})

    buffer, storage = io.BytesIO(), Storage()
    Writer(buffer, 2).dump({f"w{number}": Tensor(storage) for number in range(names)})
    records[name] = buffer.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for record, content in records.items():
            archive.writestr(record, content)


def test_a_stride_of_0_shows_no_more_than_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    lying(path, (4,), (1,))
    read = read_pickled(path)
    assert read.state(tensors_of(read.root))["w0"].read().tolist() == [0, 0, 0, 0]  # the file is otherwise a good one
    lying(path, (500_000_000,), (0,))
    read = read_pickled(path)
    with pytest.raises(UserError, match="tampered|reaches beyond"):
        read.state(tensors_of(read.root))


def test_one_storage_is_not_shown_any_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    lying(path, (4,), (1,), names=50)
    read = read_pickled(path)
    assert len(read.state(tensors_of(read.root))) == 50  # little enough
    monkeypatch.setattr("beitkit.interop.reading.unpickle.SMALL", 0)
    with pytest.raises(UserError, match="tampered"):
        read.state(tensors_of(read.root))


# An index with a good checksum.


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """Change an index and make its checksums right again."""
    import zlib

    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="np") as file:
        description = json.loads((file.metadata() or {})["beitkit index"])
        arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
    change(description, arrays)
    description["checksums"] = {name: zlib.crc32(np.ascontiguousarray(array).data) for name, array in arrays.items()}
    text = json.dumps(description)
    save_file(arrays, path, {"beitkit index": text, "checksum": _checksum(text)})


def assign(name: str, place: Any, value: Any) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    def change(_: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays[name][place] = value

    return change


def describe(**values: Any) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda description, _: description.update(values)


BAD_INDEXES: dict[str, Callable[[dict[str, Any], dict[str, np.ndarray]], None]] = {
    "offset negative": assign("offsets", 1, -5),
    "offsets run back": assign("offsets", 1, 20),
    "first offset": assign("offsets", 0, 3),
    "label beyond": assign("labels", 0, 7),
    "label negative": assign("labels", 0, -1),
    "archive beyond": assign("archive", 0, 9),
    "archive negative": assign("archive", 0, -1),
    "place negative": assign("places", (0, 0), -1),
    "classes a number": describe(classes=5),
    "classes of lists": describe(classes=[[], []]),
    "classes a text": describe(classes="ab"),
    "root a list": describe(root=[]),
    "digest a number": describe(digest=5),
    "digest of labels missing": describe(labelled_digest=None),
    "kind": describe(kind="zip"),
    "kind a list": describe(kind=[]),
    "archives a number": describe(archives=3),
    "archives of numbers": describe(archives=[1, 2]),
    "size a text": describe(archives=[["000000.tar", "x"]]),
    "column a list": describe(column=[]),
    "places of three": lambda _, arrays: arrays.update(places=np.zeros((4, 3), dtype=np.int64)),
    "labels of two": lambda _, arrays: arrays.update(labels=np.zeros((4, 1), dtype=np.int64)),
}


@pytest.mark.parametrize("fault", BAD_INDEXES)
def test_an_index_with_a_good_checksum_and_bad_contents(fault: str, photos: Path, tmp_path: Path) -> None:
    beitkit.pack(photos, out=tmp_path / "packed", labels=True)
    path = tmp_path / "packed" / "x.index"
    found = archives_at(tmp_path / "packed")
    assert found is not None
    write_index(path, archive_images(found, labeled=True))
    rewritten(path, lambda *_: None)
    assert len(open_index(str(path), labeled=True)) == 4  # what was done to it besides is harmless
    rewritten(path, BAD_INDEXES[fault])
    with pytest.raises(UserError, match="is no index, or is damaged"):
        open_index(str(path), labeled=True)


# Parquet.


@pytest.mark.parametrize(
    "fault",
    ["path of numbers", "path of bytes", "two columns", "name that is no UTF-8", "path that is no UTF-8", "labels of bytes"],
)
def test_parquet_with_odd_columns(fault: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    paths: dict[str, Any] = {"path of numbers": arrow.array([1, 2]), "path of bytes": arrow.array([b"a\xff.png", b"b.png"])}
    if fault == "path that is no UTF-8":
        binary = arrow.array([b"a\xff.png", b"b.png"])
        paths[fault] = arrow.StringArray.from_buffers(2, binary.buffers()[1], binary.buffers()[2])
    struct_of = arrow.StructArray.from_arrays(
        [arrow.array([buffer.getvalue()] * 2), paths.get(fault, arrow.array(["a.png", "b.png"]))], ["bytes", "path"]
    )
    label = arrow.array([b"\xff", b"b"]) if fault == "labels of bytes" else arrow.array([0, 1])
    columns, names = [struct_of, label], ["image", "label"]
    if fault == "two columns":
        columns, names = [struct_of, struct_of, label], ["image", "image", "label"]
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_arrays(columns, names), path)
    if fault == "name that is no UTF-8":
        path.write_bytes(path.read_bytes().replace(b"label", b"la\xffel"))
    if fault in ("path of numbers", "path of bytes"):
        files = parquet_images(str(path), labeled=True)
        assert files.names == ([b"a/00000000", b"a/00000001"] if fault == "path of numbers" else [b"a\xff.png", b"b.png"])
    else:
        with pytest.raises(UserError) as error:
            parquet_images(str(path), labeled=True)
        assert "\n" not in str(error.value)


def test_row_groups_count_their_bytes(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [bytes(np.random.default_rng(number).integers(0, 256, 100_000, dtype=np.uint8)) for number in range(10)]
    parquet.write_table(arrow.table({"image": rows}), path)
    with reading_up_to(ReadLimit(max_memory=2.0)):
        assert len(find_images(path)) == 10
    with reading_up_to(ReadLimit(max_memory=0.5)), pytest.raises(UserError, match=r"a row group of .* `read.max_memory=\d`"):
        find_images(path)


FLIPS = """
import sys
from pathlib import Path

from beitkit.data.sources.parquet import parquet_images
from beitkit.errors import UserError

good, place = Path(sys.argv[1]).read_bytes(), sys.argv[2]
footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
refused = 0
for at in range(footer, len(good)):
    Path(place).write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
    try:
        parquet_images(place, labeled=True)
    except UserError as error:
        assert "\\n" not in str(error)
        refused += 1
print(refused)
"""


def test_damaged_metadata_of_a_parquet_file_do_not_end_the_process(tmp_path: Path) -> None:
    """A bit of every byte of its footer flipped; pyarrow calls `std::terminate` when it is asked about some of these columns."""
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = {"image": [{"bytes": b"x", "path": f"{row}.png"} for row in range(4)], "label": [0, 1, 0, 1]}
    arrow.parquet.write_table(arrow.table(rows), tmp_path / "good.parquet")
    given = [sys.executable, "-c", FLIPS, str(tmp_path / "good.parquet"), str(tmp_path / "bad.parquet")]
    assert int(subprocess.run(given, check=True, capture_output=True, text=True).stdout) > 100


# Terminals.

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj"


def test_no_escape_sequence_reaches_the_terminal(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(photos / "a" / f"{ESCAPE}.png")
    (photos / "b" / f"{ESCAPE}\nbeitkit: done.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(photos), "--model", str(model)])
    assert stop.value.code == 0
    shown = capsys.readouterr()
    assert "unreadable" in shown.err
    assert r"\x1b]0;owned\x07" in shown.out
    assert "\nbeitkit: done" not in shown.err
    for text in (shown.out, shown.err):
        assert not any(sign in text for sign in "\x1b\x07\x9b\u202e")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(photos / ESCAPE), "--model", str(model)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("beitkit: ")
    assert "\x1b" not in said
    # Python callers, too, and tables of classes with such names.
    (photos / ESCAPE).mkdir()
    for number in range(2):
        Image.new("RGB", (20, 20)).save(photos / ESCAPE / f"{number}.png")
    save_native(Classifier(ClassifierConfig(backbone=BACKBONE, classes=tuple(sorted(("a", "b", ESCAPE))))), tmp_path / "third")
    (photos / "b" / f"{ESCAPE}\nbeitkit: done.png").unlink()
    beitkit.evaluate(photos, model=(tmp_path / "third",))
    shown = capsys.readouterr()
    assert r"\x1b" in shown.out
    assert "\x1b" not in shown.out + shown.err


def test_images_that_are_none(tmp_path: Path) -> None:
    for name, make in KINDS_OF_ODD.items():
        make(tmp_path / f"{name}.jpg")
        with pytest.raises(BrokenImage):
            open_image(tmp_path / f"{name}.jpg", 3)
