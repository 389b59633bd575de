"""Finding images in folders and lists, and one clear line for everything that is wrong there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitkit.data.decoding.formats import DEEP, EXTENSIONS, FORMATS, HAS_HEIF
from beitkit.data.sources.find import find_images, find_labeled, split_folders
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def names(files: ImageList) -> list[str]:
    return [str(files.path(index).relative_to(files.root)) for index in range(len(files))]


def test_formats_are_pillow_s() -> None:
    Image.init()
    assert set(FORMATS) - set(Image.OPEN) <= ({"HEIF"} if not HAS_HEIF else set())
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in {*FORMATS, "MPO"}}
    assert known | {ending for endings in DEEP.values() for ending in endings} == EXTENSIONS


def test_nested_folder_is_sorted_and_skips_what_is_hidden_or_no_image(tmp_path: Path) -> None:
    make(tmp_path, "b.PNG", "a/z.jpg", "a/y.webp", ".hidden.jpg", ".trash/x.jpg", "notes.txt", "jpg", "a/.b.jpg", "B.tiff")
    assert names(find_images(tmp_path)) == ["B.tiff", "a/y.webp", "a/z.jpg", "b.PNG"]


def test_only_regular_files_count(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "folder.jpg/inside.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    assert names(find_images(tmp_path)) == ["a.jpg", "folder.jpg/inside.jpg", "link.jpg"]


def test_folder_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "images/a/x.jpg", "elsewhere/y.jpg")
    (tmp_path / "images/a/up").symlink_to(tmp_path / "images")
    (tmp_path / "images/far").symlink_to(tmp_path / "elsewhere")
    assert names(find_images(tmp_path / "images")) == ["a/x.jpg", "far/y.jpg"]


def test_names_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    files = find_images(tmp_path)
    assert os.fsencode(files.path(0)) == raw
    assert files.path(0).read_bytes() == b"x"


def test_text_list(tmp_path: Path) -> None:
    make(tmp_path, "p/a.jpg", "p/b.jpg", "other.dat")
    absolute = tmp_path / "p/b.jpg"
    (tmp_path / "list.txt").write_text(f"# ours\np/a.jpg\n\n  {absolute}  \nother.dat\n")
    files = find_images(tmp_path / "list.txt")
    assert [files.path(index) for index in range(3)] == [tmp_path / "p/a.jpg", absolute, tmp_path / "other.dat"]
    assert files.labels is None


def test_table_with_and_without_labels(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b, c.jpg", "d.jpg")
    (tmp_path / "t.csv").write_text('\ufefflabel,path\n10,a.jpg\n9,"b, c.jpg"\n10,d.jpg\n', encoding="utf-8")
    assert names(find_images(tmp_path / "t.csv")) == ["a.jpg", "b, c.jpg", "d.jpg"]
    files = find_labeled(tmp_path / "t.csv")
    assert files.classes == ("9", "10")  # numbers by value
    assert files.labels is not None
    assert files.labels.tolist() == [1, 0, 1]


def test_class_folders_with_and_without_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/dog/1.jpg", "train/cat/x/2.jpg", "train/cat/1.jpg", "validation/dog/3.jpg")
    assert {split: path.name for split, path in split_folders(tmp_path).items()} == {"train": "train", "val": "validation"}
    train = find_labeled(tmp_path, "train")
    assert (names(train), train.classes) == (["cat/1.jpg", "cat/x/2.jpg", "dog/1.jpg"], ("cat", "dog"))
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 1]
    val = find_labeled(tmp_path, "val", classes=train.classes)  # a class may be absent here
    assert val.labels is not None
    assert val.labels.tolist() == [1]
    direct = find_labeled(tmp_path / "train")
    assert direct.digest == train.digest
    assert split_folders(tmp_path / "train") == {}


def test_subset_and_digest(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    files = find_labeled(tmp_path)
    part = files.subset([2, 0])
    assert names(part) == ["b/3.jpg", "a/1.jpg"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0]
    assert part.classes == files.classes
    assert len(files.subset(np.array([], dtype=np.int64))) == 0
    digests = {files.digest, part.digest, files.subset([0, 2]).digest, find_images(tmp_path).digest}
    assert len(digests) == 4
    several = files.with_targets()
    assert several.labels is None
    assert several.targets is not None
    assert several.targets.tolist() == [[True, False], [True, False], [False, True]]
    assert several.counts().tolist() == files.counts().tolist() == [2, 1]
    digests |= {several.digest, several.subset([0, 2]).digest, several.subset([2, 0]).digest}
    assert len(digests) == 7
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert find_labeled(moved).digest == files.digest


def test_the_digest_is_the_same_however_the_files_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "images", "a/1.jpg", "a/12.jpg", "b/2.jpg")
    expected = find_labeled(folder).digest
    rows = {"a/1.jpg": "a", "a/12.jpg": "a", "b/2.jpg": "b"}
    written = {
        "relative": [f"images/{name}" for name in rows],
        "absolute": [str(folder / name) for name in rows],
        "mixed": [str(folder / "a/1.jpg"), "images/a/12.jpg", str(folder / "b/2.jpg")],
    }
    for kind, names in written.items():
        table = tmp_path / f"{kind}.csv"
        table.write_text("path,label\n" + "".join(f"{n},{c}\n" for n, c in zip(names, rows.values(), strict=True)))
        assert find_labeled(table).digest == expected, kind
    (folder / "b/2.jpg").rename(folder / "b/3.jpg")
    assert find_labeled(folder).digest != expected
    part = find_labeled(folder).subset([0, 1])
    assert part.digest == ImageList.of(folder / "a", [b"1.jpg", b"12.jpg"], classes=("a", "b"), labels=part.labels).digest


def test_a_list_is_flat_memory(tmp_path: Path) -> None:
    files = find_images(make(tmp_path, "a.jpg", "bb.jpg"))
    assert files.names == b"a.jpgbb.jpg"
    assert files.offsets.tolist() == [0, 5, 11]
    assert files.offsets.dtype == np.int64


MISTAKES = [
    ("missing", lambda root: find_images(root / "nowhere"), "does not exist"),
    ("empty", lambda root: find_images(root), "holds no images"),
    ("no images", lambda root: find_images(make(root, "a.txt")), "holds no images"),
    ("one image", lambda root: find_images(make(root, "a.jpg") / "a.jpg"), "is one image"),
    ("no split", lambda root: find_labeled(make(root, "train/a/1.jpg", "train/b/1.jpg"), "val"), "no split 'val'; it has train"),
    ("which split", lambda root: find_labeled(make(root, "train/a/1.jpg", "test/a/1.jpg")), "divided into train, test"),
    ("no classes", lambda root: find_labeled(make(root, "1.jpg")), "images but no class folders"),
    ("nothing", lambda root: find_labeled(root), "neither images nor class folders"),
    ("one class", lambda root: find_labeled(make(root, "a/1.jpg")), "only the class 'a'"),
    ("empty class", lambda root: find_labeled(make(root, "a/1.jpg", "b/readme.txt")), "class folder .*b holds no images"),
    ("stray", lambda root: find_labeled(make(root, "a/1.jpg", "b/1.jpg", "c.jpg")), "c.jpg lies beside the class folders"),
    ("unknown class", lambda root: find_labeled(make(root, "a/1.jpg", "b/1.jpg"), classes=["a", "c"]), "b is a class that"),
]


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_folder_mistakes(tmp_path: Path, call, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "a.jpg\nnope.jpg\n", r"l.txt, line 2: there is no image 'nope.jpg'"),
        ("l.txt", "# nothing\n", "lists no images"),
        ("l.txt", "a.jpg\n\0\n", "l.txt is no list: it holds binary data"),
        ("l.txt", "sub\n", "line 1: 'sub' is not a regular file"),
        ("l.txt", "a.jpg\n", "has no labels"),
        ("l.csv", "", "must name a column 'path'; found nothing"),
        ("l.csv", "file,label\na.jpg,x\n", "must name a column 'path'; found file, label"),
        ("l.csv", "path\na.jpg\n", "must name a column 'label'"),
        ("l.csv", "path,label\na.jpg,x\nb.jpg\n", "line 3: expected 2 columns"),
        ("l.csv", "path,label\na.jpg,x,y\n", "line 2: expected 2 columns"),
        ("l.csv", "path,label\na.jpg,\n", "line 2: the label is empty"),
        ("l.csv", "path,label\na.jpg,x\ngone.jpg,y\n", "line 3: there is no image 'gone.jpg'"),
        ("l.csv", 'path,label\na.jpg,"x\n', "line 2: unexpected end of data"),
        ("l.csv", "path,label\na.jpg,x\nb.jpg,x\n", "only the class 'x'"),
    ],
)
def test_list_mistakes_name_the_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg")
    (tmp_path / name).write_text(content)
    is_about_labels = "label" in message or name.endswith("csv")
    with pytest.raises(UserError, match=message) as caught:
        find_labeled(tmp_path / name) if is_about_labels else find_images(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_label_the_training_images_lack(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l.csv").write_text("path,label\na.jpg,x\nb.jpg,z\n")
    with pytest.raises(UserError, match="line 3: label 'z' is not one of the 2 known classes"):
        find_labeled(tmp_path / "l.csv", classes=["x", "y"])
    with pytest.raises(UserError, match="is a list and has no split"):
        find_labeled(tmp_path / "l.csv", "train")


def test_what_is_left_out_is_counted_by_ending_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a.jpg", "b.MOV", "x/c.mov", "x/d.pdf", "README", "a.very long part of a name", ".hidden.mov")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nothing")
    find_images(tmp_path)
    counts = "2 .mov, 2 without an ending, 1 .pdf, 1 .jpg that is no regular file"
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: left out: 2 ")
    assert sorted(said.strip().split("left out: ")[1].split(", ")) == sorted(counts.split(", "))
    find_images(tmp_path)
    assert capsys.readouterr().err == ""


def test_many_endings_are_not_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(
        tmp_path, "a.jpg", "0.mov", *(f"{number}.e{number}" for number in range(9)), *(f"{number}.mov" for number in range(1, 3))
    )
    find_images(tmp_path)
    assert "left out: 3 .mov, 1 .e" in (said := capsys.readouterr().err)
    assert said.endswith(", 4 others\n")


def test_only_the_first_of_several_processes_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.jpg", "b.mov")
    monkeypatch.setenv("RANK", "1")
    find_images(tmp_path)
    assert capsys.readouterr().err == ""


def test_class_folders_say_what_they_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "cat/a.jpg", "cat/b.mov", "dog/c.jpg", "dog/x/d.mov", "notes.txt")
    find_labeled(tmp_path)
    assert capsys.readouterr().err == f"{tmp_path}: left out: 2 .mov, 1 .txt\n"
    make(tmp_path, "bird/e.mov")
    with pytest.raises(UserError, match=r"bird holds no images \(left out: 1 .mov\); fill or remove it"):
        find_labeled(tmp_path)


@pytest.mark.skipif(HAS_HEIF, reason="pillow-heif is installed")
def test_images_of_phones_that_cannot_be_read_name_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a.jpg", "b.heic", "c.HEIC")
    assert names(find_images(tmp_path)) == ["a.jpg"]
    assert "left out: 2 .heic (pip install 'beitkit[heic]' reads .heic)" in capsys.readouterr().err
    make(tmp_path / "only", "b.heic")
    with pytest.raises(UserError, match="holds no images .*; left out: 1 .heic \\(pip install"):
        find_images(tmp_path / "only")


@pytest.mark.parametrize("name", ["a.heic", "a.heif", "a.avif", "a.jpg"])
def test_a_single_image_is_no_list(tmp_path: Path, name: str) -> None:
    make(tmp_path, name)
    with pytest.raises(UserError, match=f"{name} is one image; give the folder it is in, or a list"):
        find_images(tmp_path / name)


@pytest.mark.parametrize("ending", ["", ".mov", ".txt", ".csv", ".jsonl"])
@pytest.mark.parametrize("content", [b"\0\0\0\x18ftypheic", b"path,label\n\0", b"\x89PNG\r\n\x1a\n\0"])
def test_a_binary_file_is_never_read_as_a_list(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"file{ending}"
    path.write_bytes(content)
    for find in (find_images, find_labeled):
        with pytest.raises(UserError) as error:
            find(path)
        assert str(error.value).startswith(f"{path} is no list: it holds binary data;")
        assert "\\" not in str(error.value)


def test_names_in_other_encodings_are_still_text(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    assert len(find_images(tmp_path / "list.txt")) == 1
