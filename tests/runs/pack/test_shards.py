"""Shards: the same input gives the same bytes, whatever happened on the way."""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitkit.cli import main
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError
from beitkit.runs.pack import run as pack_run
from beitkit.runs.pack import shards as packing
from beitkit.runs.pack.config import PackRun
from beitkit.runs.pack.shards import pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for index in range(8):
        path = folder / f"class {index % 2}" / f"{'n' * 20 * index}{index}.{'png' if index == 3 else 'jpg'}"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(path)
    return folder


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def packed(files: ImageList, out: Path, shard_bytes: int = 5000, max_broken: float = 0.0) -> list[str]:
    reports: list[str] = []
    pack(files, out, shard_bytes, max_broken, lambda path, reason: reports.append(f"{path}: {reason}"), lambda done: None)
    return reports


def test_members_are_the_files(folder: Path, tmp_path: Path) -> None:
    files = find_labeled(folder)
    packed(files, tmp_path / "s")
    found: list[tuple[str, bytes]] = []
    for path in sorted((tmp_path / "s").glob("*.tar")):
        with tarfile.open(path) as archive:
            assert path.stat().st_size <= 5000 or len(archive.getnames()) == 2
            assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in archive} == {(0, 0, 0, 0o644, "")}
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found.append((member.name, file.read()))
    assert files.labels is not None
    expected = []
    for index in range(len(files)):
        name = files.name(index).decode()
        expected += [(name, files.path(index).read_bytes()), (f"{name[:-4]}.cls", str(files.labels[index]).encode())]
    assert found == expected
    assert (tmp_path / "s/classes.txt").read_text() == "class 0\nclass 1\n"


def test_a_stopped_command_continues_to_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_labeled(folder)
    files.path(1).write_bytes(b"nothing")
    whole = packed(files, tmp_path / "whole", max_broken=0.2)
    assert len(whole) == 1
    expected = content(tmp_path / "whole")
    shards = sum(name.endswith(".tar") for name in expected)
    assert shards > 3
    write = packing.write_atomically
    for stop in range(2 * shards + 2):
        calls = itertools.count(1)

        def failing(path: Path, given: Any, stop: int = stop, calls: Iterator[int] = calls) -> None:
            if next(calls) > stop:
                raise KeyboardInterrupt
            write(path, given)

        out = tmp_path / f"out{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(packing, "write_atomically", failing)
            with pytest.raises(KeyboardInterrupt):
                packed(files, out, max_broken=0.2)
        kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} if out.exists() else {}
        recorded = len(json.loads((out / packing.PACKING).read_text())["taken"]) if (out / packing.PACKING).exists() else 0
        assert packed(files, out, max_broken=0.2) == whole
        assert content(out) == expected
        later = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        assert all(later[name] == time for name, time in sorted(kept.items())[:recorded])
    packed(files, tmp_path / "whole", max_broken=0.2)
    assert content(tmp_path / "whole") == expected


def test_a_lost_shard_is_made_again(folder: Path, tmp_path: Path) -> None:
    files = find_images(folder)
    packed(files, tmp_path / "s")
    expected = content(tmp_path / "s")
    (tmp_path / "s/000001.tar").unlink()
    packed(files, tmp_path / "s")
    assert content(tmp_path / "s") == expected


def test_unreadable_images_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    files = find_images(folder)
    half = files.path(2).read_bytes()
    files.path(2).write_bytes(half[: len(half) // 2])
    files.path(5).unlink()
    reports = packed(files, tmp_path / "s", max_broken=0.25)
    assert [report.rpartition(": ")[0] for report in reports] == [str(files.path(2)), str(files.path(5))]
    assert find_images(tmp_path / "s").digest == files.subset([0, 1, 3, 4, 6, 7]).digest
    with pytest.raises(UserError, match="1 of 8 images cannot be read, more than the 10.00% allowed"):
        packed(files, tmp_path / "t", max_broken=0.1)


def test_names_of_lists(folder: Path, tmp_path: Path) -> None:
    (folder / "class 0/image.dat").write_bytes((folder / "class 0/0.jpg").read_bytes())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/l.txt").write_text(f"../images/class 0/0.jpg\n{folder}/class 0/image.dat\n")
    packed(find_images(tmp_path / "sub/l.txt"), tmp_path / "s")
    assert bytes(find_images(tmp_path / "s").names) == b"0.jpgimage.dat.jpg"


def test_what_cannot_be_kept_is_refused(folder: Path, tmp_path: Path) -> None:
    files = find_labeled(folder)
    with pytest.raises(UserError, match="these can have several"):
        packed(files.with_targets(), tmp_path / "s")
    first = files.path(0)
    os.link(first, first.with_suffix(".jpeg"))
    rows = f"path,label\n{first},a\n{first.with_suffix('.jpeg')},b\n"
    (tmp_path / "l.csv").write_text(rows)
    with pytest.raises(UserError, match="0.jpeg has another label than an image whose name differs in its ending"):
        packed(find_labeled(tmp_path / "l.csv"), tmp_path / "t")
    (tmp_path / "m.csv").write_text('path,label\nimages/class 0/0.jpg,a\nimages/class 0/0.jpeg,"b\nc"\n')
    with pytest.raises(UserError, match="has a line break in its name"):
        packed(find_labeled(tmp_path / "m.csv"), tmp_path / "u")
    (folder / "class 0/.x.jpg").write_bytes(first.read_bytes())
    (tmp_path / "h.txt").write_text("images/class 0/.x.jpg\n")
    with pytest.raises(UserError, match="x.jpg is hidden"):
        packed(find_images(tmp_path / "h.txt"), tmp_path / "v")


def test_stale_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    files = find_images(folder)
    packed(files, tmp_path / "s")
    with pytest.raises(UserError, match="holds shards of --shard-size 0.005"):
        packed(files, tmp_path / "s", shard_bytes=9000)
    with pytest.raises(UserError, match="holds shards of other images"):
        packed(files.subset([1, 2]), tmp_path / "s")
    (tmp_path / "s/000009.tar").write_bytes(b"")
    with pytest.raises(UserError, match="lists other archives than lie beside it"):
        find_images(tmp_path / "s")
    (tmp_path / "s/000009.tar").unlink()
    with (tmp_path / "s/000000.tar").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"000000.tar has [\d,]+ bytes, but had [\d,]+ when"):
        find_images(tmp_path / "s")
    with pytest.raises(UserError, match="is not empty and holds no shards"):
        pack_run.run(PackRun(folder, out=folder))
    good = json.loads((tmp_path / "s/packing.json").read_text())
    odd = ({"taken": 5}, {"taken": ["x"]}, {"settings": good["settings"] | {"shard_bytes": []}})
    for damaged in ("{", "[]", *(json.dumps(good | one) for one in odd)):
        (tmp_path / "s/packing.json").write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            packed(files, tmp_path / "s")


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["pack", str(folder), "--out", str(tmp_path / "s"), "--labels"], "8 images in 1 shard). Next: beitkit finetune"),
        (
            ["index", str(tmp_path / "s"), "--out", str(tmp_path / "x.index"), "--labels"],
            "x.index (8 images). Next: beitkit finetune",
        ),
        (["pack", str(tmp_path / "x.index"), "--out", str(tmp_path / "t"), "--labels"], "8 images in 1 shard"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert said in capsys.readouterr().out
    assert content(tmp_path / "s") == content(tmp_path / "t")
