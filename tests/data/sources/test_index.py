"""The index: what it holds, what it costs, and that damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors import safe_open
from safetensors.numpy import save_file

from beitkit.data.sources import folders
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.folders import sorted_walk, walk
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.index import open_index, write_index
from beitkit.errors import UserError
from beitkit.runs.pack import index as index_run
from beitkit.runs.pack.config import IndexRun


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


NAMES = ("c.jpg", "a/2.jpg", "a/10.jpg", "a b/x.png", "a/ü.jpg", "a/line\nbreak.jpg", "z/" + "n" * 200 + ".jpg")


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_a_walk_in_parts_is_sorted_like_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    folder = make(tmp_path / "p", *NAMES)
    monkeypatch.setattr(folders, "SORTED_TOGETHER", together)
    assert list(sorted_walk(folder, tmp_path)) == sorted(walk(folder))


def test_runs_longer_than_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "p", *(f"{'d' * 200}/{index:0200d}.jpg" for index in range(900)))
    monkeypatch.setattr(folders, "SORTED_TOGETHER", 400)
    assert list(sorted_walk(folder, tmp_path)) == sorted(walk(folder))


def test_an_index_is_the_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", *NAMES)
    files = find_images(folder)
    index_run.run(IndexRun(folder, out=tmp_path / "x.index"))
    found = find_images(tmp_path / "x.index")
    assert [found.path(i) for i in range(len(found))] == [files.path(i) for i in range(len(files))]
    assert found.digest == found.computed_digest() == files.digest
    assert isinstance(found.names, np.memmap)
    part = found.subset([3, 1])
    assert [part.name(0), part.name(1)] == [files.name(3), files.name(1)]
    assert part.digest == files.subset([3, 1]).digest


def test_an_index_moves_with_its_folder(tmp_path: Path) -> None:
    make(tmp_path / "one/p", "a.jpg", "b.jpg")
    index_run.run(IndexRun(tmp_path / "one/p", out=tmp_path / "one/x.index"))
    (tmp_path / "one").rename(tmp_path / "two")
    assert find_images(tmp_path / "two/x.index").path(0).is_file()
    index_run.run(IndexRun(tmp_path / "two/p", out=tmp_path / "three/x.index"))
    (tmp_path / "three/x.index").rename(tmp_path / "x.index")
    assert find_images(tmp_path / "x.index").path(1).is_file()


def test_an_index_keeps_labels_only_where_it_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg")
    index_run.run(IndexRun(folder, out=tmp_path / "x.index", labels=True, split="train"))
    found = find_labeled(tmp_path / "x.index")
    assert found.digest == found.computed_digest() == find_labeled(folder / "train").digest
    assert found.with_targets().digest == find_labeled(folder / "train").with_targets().digest
    index_run.run(IndexRun(folder, out=tmp_path / "y.index"))
    with pytest.raises(UserError, match="y.index holds no labels; make the index again with labels"):
        find_labeled(tmp_path / "y.index")
    with pytest.raises(UserError, match="is an index and has no split 'val'"):
        find_labeled(tmp_path / "x.index", "val")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "x.index"
    names = [b"a.jpg", b"bb.jpg", b"c/d.jpg"]
    labels = np.array([0, 1, 0], dtype=np.int64)
    write_index(path, ImageList.of(path.parent, names, labels=labels, classes=("x", "y")))
    return path


@settings(max_examples=300, deadline=None)
@given(data=some.data())
def test_any_damage_is_refused_in_one_line(data: some.DataObject, whole: Path) -> None:
    path = whole.with_name("y.index")
    content = bytearray(whole.read_bytes())
    kind = data.draw(some.sampled_from(["flip", "cut", "append"]))
    if kind == "flip":
        place = data.draw(some.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(some.integers(0, 7))
    elif kind == "cut":
        del content[data.draw(some.integers(0, len(content) - 1)) :]
    else:
        content += b"x"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged") as caught:
        open_index(str(path), labeled=False)
    assert "\n" not in str(caught.value)


def test_an_index_is_a_safetensors_file(whole: Path) -> None:
    with safe_open(whole, framework="np") as file:
        assert file.get_tensor("names").tobytes() == b"a.jpgbb.jpgc/d.jpg"
        assert file.get_tensor("offsets").tolist() == [0, 5, 11, 18]
        assert json.loads(file.metadata()["beitkit index"])["classes"] == ["x", "y"]
    assert all(array.ctypes.data % array.itemsize == 0 for array in (open_index(str(whole), labeled=True).offsets,))


def test_an_index_from_before_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(b"beitkit pictures" + bytes(100))
    with pytest.raises(UserError, match="x.index was made by an earlier version; remove it and make it again"):
        find_images(tmp_path / "x.index")


def test_other_safetensors_files_are_no_index(tmp_path: Path) -> None:
    save_file({"names": np.zeros(3)}, tmp_path / "x.index")
    with pytest.raises(UserError, match="x.index is no index, or is damaged"):
        find_images(tmp_path / "x.index")


def test_several_labels_are_refused(tmp_path: Path) -> None:
    files = ImageList.of(tmp_path, [b"a.jpg"], classes=("x", "y"), targets=np.ones((1, 2), dtype=np.bool_))
    with pytest.raises(UserError, match="can have several labels, which an index does not hold"):
        write_index(tmp_path / "x.index", files)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x.index does not exist; expected an index of images"):
        find_images(tmp_path / "x.index")
    with pytest.raises(UserError, match="must end in .index"):
        IndexRun(tmp_path, out=tmp_path / "x.txt")
    with pytest.raises(UserError, match="`split='train'` is for labeled images"):
        IndexRun(tmp_path, out=tmp_path / "x.index", split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        index_run.run(IndexRun(tmp_path / "empty", out=tmp_path / "x.index"))
    assert not (tmp_path / "x.index").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
