"""The same images from a folder, a list, tar shards, Parquet files and an index: the same batches, bit for bit."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.data import MaskConfig, ViewConfig
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources import locations
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.index import INDEX, write_index
from beitkit.data.sources.locations import expanded, location
from beitkit.data.sources.split import train_and_val
from beitkit.data.stream import training_stream, with_limit_on_broken
from beitkit.data.tokens.contents import contents_of, first_changed
from beitkit.data.views.image import PretrainView
from beitkit.data.views.masking import masker
from beitkit.errors import UserError
from beitkit.runs.pack.shards import pack
from beitkit.runs.predict.inputs import gather_images
from beitkit.runs.training.reader import median_side

parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images in two classes, JPEG and PNG, in folders and with dots in their names."""
    folder = tmp_path / "images"
    for index in range(9):
        path = folder / "ab"[index % 2] / f"{index}.x{'.png' if index == 4 else '.jpg'}"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (20 + index, 24, 3), dtype=np.uint8)).save(path)
    return folder


def silent(path: Path, reason: str) -> None:
    raise AssertionError(f"{path}: {reason}")


def shards_of(files: ImageList, out: Path, megabytes: float = 0.005) -> Path:
    pack(files, out, int(megabytes * 1e6), 0.0, silent, lambda done: None)
    return out


def parquet_of(files: ImageList, out: Path, kind: str = "struct") -> Path:
    """Two files with two row groups each, as Hugging Face's datasets write them."""
    out.mkdir()
    rows = [{"bytes": files.path(i).read_bytes(), "path": files.name(i).decode()} for i in range(len(files))]
    info = {"info": {"features": {"label": {"names": list(files.classes), "_type": "ClassLabel"}}}}
    for number, part in enumerate((slice(0, 5), slice(5, None))):
        image = pyarrow.array(rows[part]) if kind == "struct" else pyarrow.array([row["bytes"] for row in rows[part]])
        columns = {"image": image}
        if files.labels is not None:
            columns["label"] = pyarrow.array(files.labels[part])
        table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})
        parquet.write_table(table, out / f"data-{number:05d}-of-00002.parquet", row_group_size=3)
    return out


@pytest.fixture
def sources(folder: Path, tmp_path: Path) -> Iterator[dict[str, Path]]:
    files = find_images(folder)
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{files.path(index)}\n" for index in range(len(files))))
    shards = shards_of(files, tmp_path / "shards")
    count = len(list(shards.glob("*.tar")))
    assert count > 2
    bare = tmp_path / "bare"
    bare.mkdir()
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        (bare / path.name).write_bytes(path.read_bytes())
        memory.pipe(f"/bare/{path.name}", path.read_bytes())
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    memory.pipe(f"/shards/{INDEX}", (shards / INDEX).read_bytes())
    tables = parquet_of(files, tmp_path / "tables")
    for path in tables.iterdir():
        memory.pipe(f"/tables/{path.name}", path.read_bytes())
    for name, images in {"photos": folder, "bare": bare, "tables": tables}.items():
        write_index(tmp_path / f"{name}.index", find_images(images))
    pattern = f"{{000000..{count - 1:06d}}}.tar"
    yield {
        "list": listed,
        "shards": shards,
        "shards without an index": bare,
        "pattern": bare / pattern,
        "pattern behind a URL": Path(f"memory://bare/{pattern}"),
        "folder behind a URL": Path("memory://bare"),
        "index behind a URL": Path("memory://shards"),
        "Parquet": tables,
        "Parquet behind a URL": Path("memory://tables"),
        **{f"index of {name}": tmp_path / f"{name}.index" for name in ("photos", "bare", "tables")},
    }
    memory.store.clear()


def dataset(files: ImageList) -> ImageDataset:
    return ImageDataset(files, PretrainView(ViewConfig(), (8, 8), (4, 4)), masker=masker(MaskConfig(), (4, 4)), seed=3)


def batches(files: ImageList, start: int = 0, workers: int = 0) -> list[Batch]:
    stream = training_stream(dataset(files), 4, start_batch=start, workers=workers)
    found = list(itertools.islice(stream, 6))
    stream.close()
    return found


def assert_same(first: list[Batch], second: list[Batch], where: str) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), (where, key)


def test_every_source_gives_the_same_batches(folder: Path, sources: dict[str, Path]) -> None:
    files = find_images(folder)
    expected, later = batches(files), batches(files, start=3)
    assert_same(expected[3:], later[:3], "resume")
    assert all((batch["broken"] < 0).all() for batch in expected)
    for name, path in sources.items():
        other = find_images(path)
        assert other.digest == other.computed_digest() == files.digest, name
        assert_same(expected, batches(other), name)
        assert_same(later, batches(other, start=3), name)
        assert median_side(other, seed=0) == median_side(files, seed=0)
    for name in ("shards", "index of tables", "index behind a URL"):
        assert_same(expected, batches(find_images(sources[name]), workers=2), f"{name}, in workers")


def test_a_list_travels_to_another_process_without_its_names(sources: dict[str, Path]) -> None:
    for name in ("index of photos", "shards"):
        files = find_images(sources[name])
        pickled = pickle.dumps(replace(files, names=files.names))
        again = pickle.loads(pickled)
        assert bytes(again.names) == bytes(files.names)
        assert bytes(files.names) not in pickled
        assert (again.digest, again.offsets.tolist()) == (files.digest, files.offsets.tolist())
        part = pickle.loads(pickle.dumps(files.offsets[2:4]))
        assert part.tolist() == files.offsets[2:4].tolist()


def test_labels_survive_in_tars_and_parquet(folder: Path, tmp_path: Path) -> None:
    files = find_labeled(folder)
    for path in (
        shards_of(files, tmp_path / "s"),
        parquet_of(files, tmp_path / "p"),
        tmp_path / "x.index",
    ):
        if path.suffix == ".index":
            write_index(path, files)
        found = find_labeled(path)
        assert (found.digest, found.classes) == (files.digest, ("a", "b"))
        assert found.computed_digest() == files.digest
        assert find_images(path).digest == find_images(folder).digest
        turned = find_labeled(path, classes=("c", "b", "a"))
        assert turned.labels is not None
        assert [turned.classes[label] for label in turned.labels] == ["a"] * 5 + ["b"] * 4
        with pytest.raises(UserError, match="label 'b' is not one of the 2 known classes"):
            find_labeled(path, classes=("a", "c"))
        train, val = train_and_val(path, None, seed=1)
        names = {os_name for part in (train, val) for os_name in (part.name(index) for index in range(len(part)))}
        assert len(names) == len(train) + len(val) == 9
        plain = train_and_val(folder, None, seed=1)
        assert (train.digest, val.digest) == (plain[0].digest, plain[1].digest)


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_labels_of_other_peoples_shards(tmp_path: Path) -> None:
    members = [("./1.jpg", b"j"), ("1.cls", b"10\n"), ("2.seg.png", b"p"), ("2.cls", b"9"), ("._1.jpg", b"x"), ("d/3.txt", b"x")]
    files = find_labeled(tar(tmp_path / "x.tar", *members))
    assert files.labels is not None
    assert (bytes(files.names), files.classes, files.labels.tolist()) == (b"1.jpg2.seg.png", ("9", "10"), [1, 0])
    (tmp_path / "classes.txt").write_text("".join(f"class {index}\n" for index in range(11)))
    files = find_labeled(tmp_path / "x.tar")
    assert files.labels is not None
    assert (files.classes[10], files.labels.tolist()) == ("class 10", [10, 9])


def test_splits_by_folder_and_by_name(folder: Path, tmp_path: Path) -> None:
    files = find_labeled(folder)
    for split, part in (("train", [0, 1, 2, 5, 6]), ("val", [3, 4, 7, 8])):
        shards_of(files.subset(part), tmp_path / "divided" / split)
    train, val = train_and_val(tmp_path / "divided", None, 0)
    assert (len(train), len(val)) == (5, 4)
    tables = parquet_of(files, tmp_path / "tables")
    (tables / "data-00000-of-00002.parquet").rename(tables / "train-00000-of-00001.parquet")
    (tables / "data-00001-of-00002.parquet").rename(tables / "validation-00000-of-00001.parquet")
    with pytest.raises(UserError, match="train has validation images but no training|class 'b' has validation"):
        train_and_val(tables, None, 0)
    assert len(find_labeled(tables, "val")) == 4
    with pytest.raises(UserError, match="is divided into train, val by its archives' names"):
        find_labeled(tables)


def test_a_broken_member_is_named_and_replaced(folder: Path, tmp_path: Path) -> None:
    files = find_images(folder)
    members = [(files.name(i).decode(), files.path(i).read_bytes()[: 60 if i == 2 else None]) for i in range(len(files))]
    path = tar(tmp_path / "x.tar", *members)
    files.path(2).write_bytes(files.path(2).read_bytes()[:60])
    reports: list[tuple[Path, str]] = []
    found = dataset(find_images(path))
    stream = with_limit_on_broken(training_stream(found, 9), found, 0.5, lambda *report: reports.append(report), None)
    assert_same([next(iter(stream))], [next(training_stream(dataset(files), 9))], "broken")
    assert [str(path) for path, _ in reports] == [f"{path}: {files.name(2).decode()}"]
    plain = dataset(files)
    assert reports[0][1] == plain.reason(2)


def test_an_archive_that_shrinks_is_broken_images(folder: Path, tmp_path: Path) -> None:
    shards = shards_of(find_images(folder), tmp_path / "s", megabytes=1)
    files = find_images(shards)
    archive = shards / "000000.tar"
    archive.write_bytes(archive.read_bytes()[:-3000])
    assert dataset(files).reason(8) == "the archive is cut short"
    archive.unlink()
    assert "No such file" in dataset(files).reason(0)


@pytest.mark.parametrize("name", ["shards", "Parquet", "pattern behind a URL"])
def test_contents_of_members(sources: dict[str, Path], folder: Path, name: str) -> None:
    files = find_images(sources[name])
    before = contents_of(files)
    assert before[:, 0].tolist() == contents_of(find_images(folder))[:, 0].tolist()
    assert first_changed(files, before) is None
    assert first_changed(find_images(folder), before) is None  # the same images, elsewhere
    later = before.copy()
    later[:, 2] += 1  # the archive was copied: its time differs, its images do not
    assert first_changed(files, later) is None
    later[4, 0] += 1
    assert first_changed(files, later) == 4


def test_gathered_inputs(sources: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    bare = sorted(sources["shards without an index"].glob("*.tar"))
    expected = find_images(folder).digest
    assert gather_images(bare).digest == expected
    assert gather_images([sources["shards"]]).known_digest == expected
    assert gather_images([sources["index of photos"]]).digest == expected
    assert gather_images([sources["shards without an index"] / "*.tar"]).digest == expected
    with pytest.raises(UserError, match="give them in two commands"):
        gather_images([bare[0], folder])
    with pytest.raises(UserError, match="give them in two commands"):
        gather_images([bare[0], sources["Parquet"]])


def test_patterns_and_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expanded("s/{098..101}.tar") == ["s/098.tar", "s/099.tar", "s/100.tar", "s/101.tar"]
    assert expanded("{a,b}{8..10}") == ["a8", "a9", "a10", "b8", "b9", "b10"]
    assert expanded("plain{x}.tar") == ["plain{x}.tar"]
    for pattern in ("{2..1}", "{0..9999999}", "{0..999}" * 3):
        with pytest.raises(UserError):
            expanded(pattern)
    assert location(Path("s3://b/x.tar")) == "s3://b/x.tar"
    assert location(Path("simplecache::s3://b/x.tar")) == "simplecache::s3://b/x.tar"
    assert location(Path("a/b.tar")) == "a/b.tar"
    monkeypatch.setitem(sys.modules, "fsspec.implementations.http", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "http", raising=False)
    with pytest.raises(UserError, match=r"install what fsspec needs .beitkit\[remote\] for http."):
        find_images("http://host/x.tar")


def test_a_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    answers: list[object] = [ConnectionError("reset"), ValueError("odd"), b"abc"]

    def ask() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert locations._insisting(ask) == b"abc"
    answers = [ValueError("odd")] * 3
    with pytest.raises(OSError, match="odd"):
        locations._insisting(ask)


def test_a_server_that_gives_whole_files_only_is_named(sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python's own http.server does, where images would come out as the archive's beginning."""
    memory = type(fsspec.filesystem("memory"))
    real = memory.cat_file
    monkeypatch.setattr(memory, "cat_file", lambda system, path, start=None, end=None, **more: real(system, path, **more))
    files = find_images(sources["pattern behind a URL"])
    with pytest.raises(UserError, match="lacks range requests.*; copy the file here"):
        batches(files)


def test_a_folder_behind_a_url_is_listed_once(sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    real, asked = memory.ls, []
    monkeypatch.setattr(memory, "ls", lambda system, path, **more: asked.append(path) or real(system, path, **more))
    for name in ("folder behind a URL", "index behind a URL"):
        asked.clear()
        find_images(sources[name])
        assert len(asked) == 1


def test_a_server_that_does_not_answer_is_one_line(sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise ConnectionRefusedError("nobody listens\nthere")

    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "ls", refuse)
    assert len(find_images(sources["pattern behind a URL"]))  # whose folder nobody has to be asked for
    with pytest.raises(UserError, match="^memory://bare cannot be read: nobody listens there$"):
        find_images(sources["folder behind a URL"])


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = tmp_path / "mixed"
    tar(mixed / "x.tar", ("a.jpg", b"x"))
    (mixed / "b.jpg").write_bytes(b"x")
    (tmp_path / "y.tar.gz").write_bytes(b"x")
    tar(tmp_path / "none.tar", ("a.txt", b"x"))
    tar(tmp_path / "unlabeled.tar", ("a.jpg", b"x"), ("b.jpg", b"x"), ("b.cls", b"1"))
    tar(tmp_path / "odd.tar", ("a.jpg", b"x"), ("a.cls", b"\xff"))
    (tmp_path / "p.parquet").write_bytes(b"nothing")
    parquet.write_table(pyarrow.table({"image": ["a"]}), tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"pixels": [b"a"]}), tmp_path / "other.parquet")
    parquet.write_table(pyarrow.table({"image": [b"a", b"b"], "label": [0.5, 1.0]}), tmp_path / "floats.parquet")
    for path, labeled, message in (
        (mixed, False, "holds archives .x.tar. and also b.jpg"),
        (tmp_path / "y.tar.gz", False, "is compressed"),
        (tmp_path / "none.tar", False, "holds no images"),
        (tmp_path / "{1..2}.tar", False, "1.tar is not there"),
        (tmp_path / "unlabeled.tar", True, "unlabeled.tar: a.jpg has no label; expected a member a.cls"),
        (tmp_path / "odd.tar", True, "a.cls is no label"),
        (tmp_path / "p.parquet", False, "is no Parquet file"),
        (tmp_path / "text.parquet", False, "its column 'image' is string"),
        (tmp_path / "other.parquet", False, "its column 'image' is missing"),
        (tmp_path / "floats.parquet", True, "row 0: the label is '0.5'"),
        (tmp_path / "gone.tar", False, "does not exist"),
        (Path("memory://gone.tar"), False, "gone.tar cannot be read: there is no such file"),
        (Path("memory://nowhere"), False, "holds no archives"),
        (Path("nosuch://x.tar"), False, "nosuch"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            find_labeled(path) if labeled else find_images(path)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'beitkit\[parquet\]'"):
        find_images(tmp_path / "text.parquet")


def test_plain_binary_parquet(folder: Path, tmp_path: Path) -> None:
    files = find_images(folder)
    found = find_images(parquet_of(files, tmp_path / "b", kind="binary"))
    assert found.name(6) == b"data-00001-of-00002/00000001"
    assert_same(batches(files), batches(found), "binary")
