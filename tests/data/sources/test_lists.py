"""Lists in their three forms: what rows say, and one clear line with its number for everything that is wrong in one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from beitkit.data.sources.find import find_images, find_labeled, labeled_source
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.lists import read_list
from beitkit.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a few files to list, and a folder among them."""
    for name in ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def written(path: Path, *rows: object) -> Path:
    """A list: CSV lines as they are, other rows as JSON."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def labels(files: ImageList) -> list[str]:
    assert files.labels is not None
    return [files.classes[label] for label in files.labels]


def several(files: ImageList) -> list[set[str]]:
    assert files.targets is not None
    assert files.targets.shape == (len(files), len(files.classes))
    return [{name for name, has in zip(files.classes, row, strict=True) if has} for row in files.targets]


def names(files: ImageList) -> list[str]:
    return [os.fsdecode(files.name(index)) for index in range(len(files))]


def test_json_lines_with_words_and_numbers(root: Path) -> None:
    rows = [{"path": "a.jpg", "label": 10}, {"path": "b.jpg", "label": "9", "note": [1]}, {"path": "sub/d.jpg", "label": 10.0}]
    path = written(root / "l.jsonl", *rows)
    path.write_text("\ufeff" + path.read_text() + "\n  \n", encoding="utf-8")
    files = find_labeled(path)
    assert (names(files), labels(files), files.classes) == (["a.jpg", "b.jpg", "sub/d.jpg"], ["10", "9", "10"], ("9", "10"))
    assert files.targets is None
    plain = find_images(path)
    assert (names(plain), plain.labels, plain.classes) == (names(files), None, ())


def test_json_lines_without_labels_need_none(root: Path) -> None:
    path = written(root / "l.jsonl", {"path": "b.jpg"}, {"path": "a.jpg", "label": None})
    assert names(find_images(path)) == ["b.jpg", "a.jpg"]


def test_json_strings_are_taken_exactly(root: Path) -> None:
    (root / " x|y.jpg").write_bytes(b"")
    files = find_labeled(written(root / "l.jsonl", {"path": " x|y.jpg", "label": "a|b"}, {"path": "a.jpg", "label": " a"}))
    assert (names(files), labels(files), files.targets) == ([" x|y.jpg", "a.jpg"], ["a|b", " a"], None)


def test_bytes_that_are_not_utf_8_survive_in_json_lines(root: Path) -> None:
    raw = os.fsencode(root) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"")
    escaped, plain = b'{"path": "caf\\udce9.jpg"}\n', b'{"path": "caf\xe9.jpg"}\n'
    (root / "l.jsonl").write_bytes(escaped + plain)
    files = find_images(root / "l.jsonl")
    assert [os.fsencode(files.path(index)) for index in range(2)] == [raw, raw]


def test_several_labels_in_json_lines(root: Path) -> None:
    rows = [{"path": "a.jpg", "labels": ["x", "z", "x"]}, {"path": "b.jpg", "labels": []}, {"path": "c.jpg", "label": "y|"}]
    files = find_labeled(written(root / "l.jsonl", *rows))
    assert (files.classes, files.labels) == (("x", "y|", "z"), None)
    assert several(files) == [{"x", "z"}, set(), {"y|"}]


def test_several_labels_in_a_table(root: Path) -> None:
    by_bar = find_labeled(written(root / "bar.csv", "path,label", "a.jpg,x | z", "b.jpg, y"))
    assert several(by_bar) == [{"x", "z"}, {"y"}]
    by_column = find_labeled(written(root / "column.csv", "labels,path", ",a.jpg", "x,b.jpg", "y|x,c.jpg"))
    assert several(by_column) == [set(), {"x"}, {"x", "y"}]
    known = find_labeled(root / "column.csv", classes=["y", "w", "x"])
    assert known.targets is not None
    assert known.targets.tolist() == [[False, False, False], [False, False, True], [True, False, True]]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_split_column_divides(root: Path, ending: str) -> None:
    rows = [("a.jpg", "x", "train"), ("b.jpg", "y", "valid"), ("c.jpg", "y", "training"), ("sub/d.jpg", "x", "testing")]
    if ending == "csv":
        path = written(root / "l.csv", "path,label,split", *(",".join(row) for row in rows))
    else:
        path = written(root / "l.jsonl", *(dict(zip(("path", "label", "split"), row, strict=True)) for row in rows))
    source = labeled_source(path)
    assert source.splits == ("train", "val", "test")
    train, val, test = (find_labeled(path, split, classes=["x", "y"]) for split in source.splits)
    assert [names(files) for files in (train, val, test)] == [["a.jpg", "c.jpg"], ["b.jpg"], ["sub/d.jpg"]]
    assert [labels(files) for files in (train, val, test)] == [["x", "y"], ["y"], ["x"]]
    with pytest.raises(UserError, match="is divided into train, val, test by its column split"):
        find_labeled(path)
    assert len(find_images(path)) == 4  # without labels there are no splits


def test_an_empty_split_column_divides_nothing(root: Path) -> None:
    path = written(root / "l.csv", "path,label,split", "a.jpg,x,", "b.jpg,y,")
    assert labeled_source(path).splits == ()
    assert len(find_labeled(path)) == 2
    written(path, "path,label,split", "a.jpg,x,train", "b.jpg,y,train", "c.jpg,y,train")
    with pytest.raises(UserError, match="has no images whose split is 'val'; it has train"):
        find_labeled(path, "val")


def test_declared_classes_keep_their_order_and_cells_their_spelling(root: Path) -> None:
    path = written(root / "l.csv", "path,label,split", ",z,class", ", b|c ,class", ",a,class", "a.jpg, b|c ,", "b.jpg,z,")
    files = find_labeled(path)
    assert (files.classes, labels(files), files.targets) == (("z", " b|c ", "a"), [" b|c ", "z"], None)
    assert files.counts().tolist() == [1, 1, 0]
    assert names(find_images(path)) == ["a.jpg", "b.jpg"]
    rows = [{"labels": ["q"], "split": "class"}, {"label": "p", "split": "class"}, {"path": "a.jpg", "labels": ["p"]}]
    assert find_labeled(written(root / "l.jsonl", *rows)).classes == ("q", "p")


def test_numbers_are_ordered_by_value_whatever_their_length(root: Path) -> None:
    long = "9" * 5000  # too long for Python to take as a number
    rows = [{"path": "a.jpg", "labels": ["7", "07", "10", "b", "1.5", long]}]
    assert find_labeled(written(root / "l.jsonl", *rows)).classes == ("07", "7", "10", "1.5", long, "b")


GOOD = {"path": "a.jpg", "label": "x"}

JSON_MISTAKES: list[tuple[list[object], str]] = [
    ([GOOD, '{"path": "b.jpg"'], r"line 2: not valid JSON \(Expecting ',' delimiter, column"),
    ([GOOD, '{"path": "b.jpg", "label": NaN}'], r"line 2: not valid JSON \(NaN"),
    ([GOOD, "[" * 100_000], r"line 2: not valid JSON \(maximum recursion depth"),
    ([GOOD, ["b.jpg", "y"]], r'line 2: expected an object such as {"path": .*, found a list'),
    ([GOOD, "3"], "line 2: expected an object .*, found the number 3"),
    ([{"label": "x"}], 'line 1: "path" is missing'),
    ([{"path": None, "label": "x"}], 'line 1: "path" must be a string, found null'),
    ([{"path": "", "label": "x"}], "line 1: the path is empty"),
    ([{"path": "a.jpg"}], 'line 1: expected "label" or "labels", found neither'),
    ([GOOD | {"labels": []}], 'line 1: expected "label" or "labels", found both'),
    ([GOOD, GOOD | {"label": True}], "line 2: a label must be a string or a number, found true"),
    ([GOOD, GOOD | {"label": {}}], "line 2: a label must be a string or a number, found an object"),
    ([GOOD, '{"path": "a.jpg", "label": 1e999}'], "line 2: a label must be .* found the number inf"),
    ([GOOD, GOOD | {"label": " "}], "line 2: the label is empty"),
    ([GOOD, GOOD | {"label": "\ud800"}], r"line 2: the label '\\ud800' is no valid text"),
    ([{"path": "a.jpg", "labels": "x"}], 'line 1: "labels" must be a list, found a string'),
    ([{"path": "a.jpg", "labels": ["x", ""]}], "line 1: the label is empty"),
    ([GOOD, GOOD | {"path": "gone.jpg"}], "line 2: there is no image 'gone.jpg'"),
    ([GOOD, GOOD | {"path": "\ud800.jpg"}], r"line 2: there is no image '\\ud800.jpg'"),
    ([GOOD, GOOD | {"path": "a\0b"}], r"line 2: there is no image 'a\\x00b'"),
    ([GOOD, GOOD | {"path": "sub"}], "line 2: 'sub' is not a regular file"),
    ([GOOD | {"split": "dev"}], "line 1: the split 'dev' is none of train, training, val, validation, valid, test, testing"),
    ([GOOD | {"split": 3}], 'line 1: "split" must be a string, found the number 3'),
    ([GOOD | {"split": "val"}, GOOD], "line 2: there is no split, but other rows have one"),
    ([GOOD | {"split": "class"}], "line 1: a row whose split is 'class' names one class as its label and has no path"),
    ([{"labels": ["x", "y"], "split": "class"}], "line 1: a row whose split is 'class' names one class"),
    ([GOOD, {"label": "x", "split": "class"}], "line 2: rows whose split is 'class' come before the images"),
    ([{"label": "x", "split": "class"}] * 2, "line 2: the class 'x' is named a second time"),
    ([{"label": "y", "split": "class"}, {"label": "z", "split": "class"}, GOOD], "line 3: label 'x' is not one of the 2 known"),
    ([{"label": "y", "split": "class"}], "lists no images"),
    ([""], "lists no images"),
    ([GOOD], "has only the class 'x'"),
    ([{"path": "a.jpg", "labels": []}], "has no label; a classifier needs two"),
]


@pytest.mark.parametrize(("rows", "message"), JSON_MISTAKES, ids=[case[1][:40] for case in JSON_MISTAKES])
def test_mistakes_in_json_lines(root: Path, rows: list[object], message: str) -> None:
    path = written(root / "l.jsonl", *rows)
    with pytest.raises(UserError, match=message) as caught:
        find_labeled(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label,labels", "a.jpg,x,y"], "must name a column 'label', or else 'labels'; found path, label, labels"),
        (["path,label", "a.jpg,x|", "b.jpg,y"], "line 2: the label is empty"),
        (["path,labels", "a.jpg,x||y"], "line 2: the label is empty"),
        (["path,label,split", "a.jpg,x,train", "b.jpg,y,dev"], "line 3: the split 'dev' is none of train"),
        (["path,label,split", "a.jpg,x,train", "b.jpg,y,"], "line 3: there is no split, but other rows have one"),
        (["path,label", ",x"], "line 2: the path is empty"),
        (["path,label", "", "a.jpg"], "line 3: expected 2 columns as in the first line, found 1"),
    ],
)
def test_mistakes_in_a_table(root: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_labeled(written(root / "l.csv", *lines))
    assert "\n" not in str(caught.value)


def test_a_long_value_is_cut_short_in_the_message(root: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_images(written(root / "l.txt", "x" * 5000))
    assert len(str(caught.value)) < 400 + len(str(root))


def test_a_table_is_flat_memory(root: Path) -> None:
    table = read_list(written(root / "l.csv", "path,labels", "a.jpg,", "sub/d.jpg,y|x", "b.jpg,x"), labeled=True)
    assert (table.names, table.offsets.tolist(), table.lines.tolist()) == (b"a.jpgsub/d.jpgb.jpg", [0, 5, 14, 19], [2, 3, 4])
    assert (table.labels, table.label_ids.tolist(), table.label_offsets.tolist()) == (("y", "x"), [0, 1, 1], [0, 0, 2, 3])
