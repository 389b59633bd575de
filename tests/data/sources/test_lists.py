"""Lists in their three forms: what rows say, and one clear line with its number for everything that is wrong in one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from beitkit.configs.data import ColumnsConfig, Separator
from beitkit.data.sources.find import find_images, find_labeled, labeled_source
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.lists import Split, read_list
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
    ([GOOD, "[" * 100_000], r"line 2: not valid JSON \(more than 64 lists"),
    ([GOOD, ["b.jpg", "y"]], r'line 2: expected an object such as {"path": .*, found a list'),
    ([GOOD, "3"], "line 2: expected an object .*, found the number 3"),
    ([{"label": "x"}], 'line 1: "path" is missing'),
    ([{"path": None, "label": "x"}], 'line 1: "path" must be a string, found null'),
    ([{"path": "", "label": "x"}], "line 1: the path is empty"),
    ([{"path": "a.jpg"}], 'line 1: expected "label" or "labels", found neither'),
    ([GOOD | {"labels": []}], 'line 1: expected "label" or "labels", found both'),
    ([GOOD, GOOD | {"label": True}], "line 2: a label must be a string or a number, found true"),
    ([GOOD, GOOD | {"label": {}}], "line 2: a label must be a string or a number, found an object"),
    ([GOOD, '{"path": "a.jpg", "label": 1e999}'], r"line 2: not valid JSON \(the number 1e999 is too large"),
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


@pytest.mark.parametrize("name", ["path", "file_name", "filename", "image", "Image", "img", "id", "image_id"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_people_write_them(root: Path, name: str, separator: str) -> None:
    lines = [separator.join(row) for row in (("label", name, "note"), ("x", "a.jpg", "1,5"), ("y", "sub/d.jpg", ""))]
    if separator == ",":
        lines[1] = 'x,a.jpg,"1,5"'
    path = written(root / "l.csv", *lines)
    files = find_labeled(path)
    assert (names(files), labels(files)) == (["a.jpg", "sub/d.jpg"], ["x", "y"])
    assert names(find_images(path)) == names(files)


def test_the_first_known_column_counts_and_an_option_names_another(root: Path) -> None:
    path = written(root / "l.csv", "id,path,breed,class", "7,a.jpg,pug,dog", "8,b.jpg,siam,cat")
    assert labels(find_labeled(path)) == ["dog", "cat"]
    assert labels(find_labeled(path, columns=ColumnsConfig(label=("breed",)))) == ["pug", "siam"]
    other = written(root / "o.csv", "shot,breed", "a.jpg,pug", "b.jpg,siam")
    assert labels(find_labeled(other, columns=ColumnsConfig(image="shot", label=("breed",)))) == ["pug", "siam"]
    assert names(find_images(other, "shot")) == ["a.jpg", "b.jpg"]
    rows = [{"file_name": "a.jpg", "breed": "pug"}, {"file_name": "b.jpg", "breed": "siam"}]
    assert labels(find_labeled(written(root / "l.jsonl", *rows), columns=ColumnsConfig(label=("breed",)))) == ["pug", "siam"]


def test_an_id_without_an_ending_finds_its_image(root: Path) -> None:
    path = written(root / "l.csv", "id,label", "a,x", "sub/d,y", "b.jpg,x")
    assert names(find_labeled(path)) == ["a.jpg", "sub/d.jpg", "b.jpg"]


def test_windows_paths(root: Path) -> None:
    assert names(find_labeled(written(root / "l.csv", "path,label", r"sub\d.jpg,x", "a.jpg,y"))) == ["sub/d.jpg", "a.jpg"]
    (root / r"a\b.jpg").write_bytes(b"")  # a name that a file here has is taken as it is
    assert names(find_images(written(root / "l.txt", r"a\b.jpg"))) == [r"a\b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "txt"])
def test_encodings(root: Path, encoding: str, ending: str) -> None:
    (root / "caf\u00e9.jpg").write_bytes(b"")
    text = {
        "csv": "path,label\ncaf\u00e9.jpg,\u00e9t\u00e9\na.jpg,x\n",
        "jsonl": '{"path": "caf\u00e9.jpg", "label": "\u00e9t\u00e9"}\n{"path": "a.jpg", "label": "x"}\n',
        "txt": "caf\u00e9.jpg\na.jpg\n",
    }[ending]
    path = root / f"l.{ending}"
    path.write_bytes(text.encode(encoding))
    assert [find_images(path).path(index).name for index in range(2)] == ["caf\u00e9.jpg", "a.jpg"]
    if ending != "txt":
        assert labels(find_labeled(path)) == ["\u00e9t\u00e9", "x"]


def test_class_folders_in_latin_1_have_names_that_are_text(tmp_path: Path) -> None:
    for folder in (b"\xe9t\xe9", b"hiver"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
        path.mkdir()
        (path / "a.jpg").write_bytes(b"")
    files = find_labeled(tmp_path)
    assert files.classes == ("hiver", "\u00e9t\u00e9")
    assert all(path.is_file() for path in map(files.path, range(2)))
    (tmp_path / "\u00e9t\u00e9").mkdir()
    with pytest.raises(UserError, match="two class folders whose names differ only in how they are encoded"):
        find_labeled(tmp_path)


ONE_HOT = ["id,cat,dog,bird", "a,1,0,0", "b,0,1,0", "c,1.0,0,0.0"]


def test_one_hot_columns_are_classes_in_their_order(root: Path) -> None:
    files = find_labeled(written(root / "l.csv", *ONE_HOT))
    assert (files.classes, labels(files)) == (("cat", "dog", "bird"), ["cat", "dog", "cat"])
    many = find_labeled(written(root / "m.csv", *ONE_HOT, "sub/d,1,1,0"))
    assert several(many) == [{"cat"}, {"dog"}, {"cat"}, {"cat", "dog"}]
    assert many.classes == ("cat", "dog", "bird")
    chosen = written(root / "n.csv", "id,age,cat,dog", "a,3,1,0", "b,4,0,1")
    with pytest.raises(
        UserError, match=r"must name a column 'label', .*found id, age, cat, dog; `columns.label` names any other"
    ):
        find_labeled(chosen)
    assert labels(find_labeled(chosen, columns=ColumnsConfig(label=("dog", "cat")))) == ["cat", "dog"]
    rows = [{"image": "a.jpg", "cat": True, "dog": False}, {"image": "b.jpg", "cat": 1, "dog": 1}]
    of_json = find_labeled(written(root / "l.jsonl", *rows), columns=ColumnsConfig(label=("cat", "dog")))
    assert several(of_json) == [{"cat"}, {"cat", "dog"}]


@pytest.mark.parametrize(("separator", "word"), [(",", "comma"), (", ", "comma"), (";", "semicolon"), (" ", "space")])
@pytest.mark.parametrize("column", ["label", "tags"])
def test_several_labels_in_a_cell_are_asked_for(root: Path, separator: str, word: Separator, column: str) -> None:
    combinations = [["cat"], ["dog", "cat"], ["dog"], ["bird", "dog"]]
    cells = [
        f'{name},"{separator.join(shown)}"'
        for name, shown in zip(("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"), combinations, strict=True)
    ]
    path = written(root / "l.csv", f"path,{column}", *cells)
    with pytest.raises(UserError, match=f"line 3: the label 'dog{separator}cat' may be one class, or several with a {word}"):
        find_labeled(path)
    told = find_labeled(path, columns=ColumnsConfig(separator=word))
    assert (told.classes, several(told)) == (("bird", "cat", "dog"), [set(shown) for shown in combinations])
    whole = find_labeled(path, columns=ColumnsConfig(separator="single"))
    assert labels(whole) == [separator.join(shown) for shown in combinations]


def test_names_of_classes_may_have_spaces_and_commas(root: Path) -> None:
    cells = ["golden retriever", "labrador retriever", '"tench, Tinca tinca"', "sea lion"]
    rows = [f"{name},{cell}" for name, cell in zip(("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"), cells, strict=True)]
    assert len(find_labeled(written(root / "l.csv", "path,label", *rows)).classes) == 4
    by_bar = written(root / "bar.csv", "path,labels", 'a.jpg,"crane, bird|x"', 'b.jpg,"crane, machine"')
    assert several(find_labeled(by_bar)) == [{"crane, bird", "x"}, {"crane, machine"}]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("split", [None, "train"])
def test_a_list_beside_the_images_as_hugging_face_has_it(root: Path, ending: str, split: Split | None) -> None:
    folder = root / "data" / (split or "")
    (folder / "images").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (folder / "images" / name).write_bytes(b"")
    rows = [("images/a.jpg", "x"), ("images/b.jpg", "y")]
    if ending == "csv":
        written(folder / "metadata.csv", "file_name,label", *(",".join(row) for row in rows))
    else:
        written(folder / "metadata.jsonl", *({"file_name": name, "label": label} for name, label in rows))
    files = find_labeled(root / "data", split)
    assert (names(files), labels(files)) == (["images/a.jpg", "images/b.jpg"], ["x", "y"])
    assert len(find_images(root / "data")) == 2


def test_class_folders_and_a_list_with_labels_are_ambiguous(root: Path) -> None:
    for name in ("x", "y"):
        (root / "data" / name).mkdir(parents=True)
        (root / "data" / name / "a.jpg").write_bytes(b"")
    beside = written(root / "data" / "metadata.csv", "file_name,caption", "x/a.jpg,hi")
    assert find_labeled(root / "data").classes == ("x", "y")
    written(beside, "file_name,label", "x/a.jpg,q")
    with pytest.raises(UserError, match=r"holds class folders and also labels in metadata\.csv; give .*, or move it away"):
        find_labeled(root / "data")
    (root / "data" / "metadata.jsonl").write_text("")
    with pytest.raises(UserError, match=r"holds metadata\.csv and metadata\.jsonl"):
        find_labeled(root / "data")
    (root / "data" / "metadata.jsonl").unlink()
    for split in ("train", "val"):
        (root / "data" / split).mkdir()
    with pytest.raises(UserError, match=r"has labels and lies beside train/, val/; put a list into each"):
        find_labeled(root / "data")


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (
            ["shot,label", "a.jpg,x"],
            ColumnsConfig(),
            "must name a column 'path'; found shot, label; .*`columns.image` names any other",
        ),
        (["path,label", "a.jpg,x"], ColumnsConfig(image="shot"), "no column 'shot', as `columns.image` says; found path, label"),
        (["path,label", "a.jpg,x"], ColumnsConfig(label=("y",)), "no column 'y', as `columns.label` says; found path, label"),
        (["path,u,v", "a.jpg,1,2"], ColumnsConfig(label=("u", "v")), "line 2: the column 'v' holds '2'; .* must hold 0 or 1"),
        (["path,label", r"C:\x\a.jpg,x"], ColumnsConfig(), "line 2: there is no image 'C:.*a.jpg'"),
        (['path,"label', "a.jpg,x"], ColumnsConfig(), "line 2: unexpected end of data"),
    ],
)
def test_mistakes_in_tables_of_people(root: Path, lines: list[str], columns: ColumnsConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_labeled(written(root / "l.csv", *lines), columns=columns)
    assert "\n" not in str(caught.value)


def test_utf_16_that_breaks_off_is_one_line(root: Path) -> None:
    (root / "l.csv").write_bytes("path,label\na.jpg,x\n".encode("utf-16") + b"\x00")
    with pytest.raises(UserError, match="line 2: it begins as UTF-16|begins as UTF-16"):
        find_labeled(root / "l.csv")
