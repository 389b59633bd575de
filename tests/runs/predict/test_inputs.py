"""Images named by files, folders, globs and lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from beitkit.data.sources import folders
from beitkit.errors import UserError
from beitkit.runs.predict.inputs import gather_images


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/2.png", "a/1.jpg", "a/deep/3.PNG", "a/notes.txt", "b c/4.jpg", "5[x].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.txt").write_text("b c/4.jpg\n# nothing\na/1.jpg\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str) -> list[str]:
    files = gather_images([Path(given) for given in inputs])
    return [str(files.path(index)) for index in range(len(files))]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a/2.png"], ["a/2.png"]),
        (["a"], ["a/1.jpg", "a/2.png", "a/deep/3.PNG"]),
        (["list.txt"], ["b c/4.jpg", "a/1.jpg"]),
        (["a/*.png", "a"], ["a/2.png", "a/1.jpg", "a/deep/3.PNG"]),
        (["*/*.jpg"], ["a/1.jpg", "b c/4.jpg"]),
        (["a/**/*.[pP]*"], ["a/2.png", "a/deep/3.PNG"]),
        (["a/*"], ["a/1.jpg", "a/2.png", "a/deep/3.PNG"]),
        (["**"], ["5[x].png", "a/1.jpg", "a/2.png", "a/deep/3.PNG", "b c/4.jpg"]),
        (["5[x].png", "list.txt"], ["5[x].png", "b c/4.jpg", "a/1.jpg"]),
    ],
)
def test_all_kinds_of_inputs(here: Path, inputs: list[str], expected: list[str]) -> None:
    assert names(*inputs) == expected


def test_names_need_not_be_text(here: Path) -> None:
    (here / os.fsdecode(b"a/\xff.png")).write_bytes(b"")
    assert os.fsencode(names("a/*.png")[-1]) == b"a/\xff.png"
    assert os.fsencode(names(os.fsdecode(b"a/\xff.png"))[0]) == b"a/\xff.png"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nowhere", "nowhere does not exist"),
        ("gone.jpg", "gone.jpg does not exist"),
        ("x*.png", "nothing matches x*.png"),
        ("a/*.txt", "nothing matches a/*.txt"),
        ("a/notes.txt", "lists no images"),
    ],
)
def test_what_names_nothing_is_refused(here: Path, given: str, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        names("a", given)
    assert expected in str(refused.value)


def test_a_glob_says_what_it_leaves_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders._say_once.cache_clear()
    assert names("a/*") == ["a/1.jpg", "a/2.png", "a/deep/3.PNG"]
    assert "a/*: left out: 1 .txt\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["6.heic", "7.HEIF", "8.avif"])
def test_images_of_phones_are_images(here: Path, name: str) -> None:
    (here / name).write_bytes(b"\0\0\0\x18ftypheic")
    assert names(name) == [name]


def test_a_single_binary_file_is_no_list(here: Path) -> None:
    (here / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  ")
    with pytest.raises(UserError, match="clip.mov is no list: it holds binary data"):
        names("clip.mov")
