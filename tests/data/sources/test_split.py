"""Choosing among labeled images."""

import hashlib
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beitkit.data.sources.find import find_labeled
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import few_per_class, fold_of, note_on_val, split_table, train_and_val
from beitkit.errors import UserError


def folder(path: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for index in range(count):
            (path / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path / name / f"{index}.png")
    return path


def per_class(files: ImageList) -> dict[str, int]:
    assert files.labels is not None
    return {files.classes[label]: count for label, count in sorted(Counter(files.labels.tolist()).items())}


def paths(files: ImageList) -> set[Path]:
    return {files.path(index) for index in range(len(files))}


def test_a_fifth_of_each_class_is_set_aside_the_same_way_every_time(tmp_path: Path) -> None:
    images = folder(tmp_path, {"cat": 10, "dog": 20, "fish": 1})
    train, val = train_and_val(images, None, seed=3)
    assert per_class(train) == {"cat": 8, "dog": 16, "fish": 1}
    assert per_class(val) == {"cat": 2, "dog": 4}
    assert not paths(train) & paths(val)
    assert paths(train_and_val(images, None, seed=3)[1]) == paths(val)
    assert paths(train_and_val(images, None, seed=4)[1]) != paths(val)


def test_folders_beside_train_are_used_and_val_comes_before_test(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 3, "b": 3})
    assert per_class(train_and_val(tmp_path, None, 0)[1]) == {"a": 1, "b": 1}  # nothing beside train: set aside
    assert paths(train_and_val(tmp_path, None, 0)[1]) < paths(find_labeled(tmp_path, "train"))
    folder(tmp_path / "test", {"a": 1, "b": 1})
    assert per_class(train_and_val(tmp_path, None, 0)[1]) == {"a": 1, "b": 1}
    folder(tmp_path / "val", {"a": 2, "b": 2})
    assert per_class(train_and_val(tmp_path, None, 0)[1]) == {"a": 2, "b": 2}
    other = folder(tmp_path.parent / "other", {"a": 4, "b": 5})
    assert per_class(train_and_val(tmp_path, other, 0)[1]) == {"a": 4, "b": 5}


def test_few_labels_are_balanced_nested_in_the_list_and_drawn_by_the_seed(tmp_path: Path) -> None:
    files = find_labeled(folder(tmp_path, {"a": 10, "b": 10, "c": 3}))
    assert per_class(few_per_class(files, 6, 0)) == {"a": 2, "b": 2, "c": 2}
    assert per_class(few_per_class(files, 15, 0)) == {"a": 6, "b": 6, "c": 3}
    assert paths(few_per_class(files, 6, 0)) == paths(few_per_class(files, 6, 0))
    assert paths(few_per_class(files, 6, 0)) != paths(few_per_class(files, 6, 1))
    assert paths(few_per_class(files, 6, 0)) < paths(few_per_class(files, 9, 0))


@pytest.mark.parametrize("labels", [2, 24])
def test_too_few_or_too_many_labels_are_refused(tmp_path: Path, labels: int) -> None:
    files = find_labeled(folder(tmp_path, {"a": 10, "b": 10, "c": 3}))
    with pytest.raises(UserError, match=f"`labels` {labels} must lie between the 3 classes and the 23"):
        few_per_class(files, labels, 0)


def test_single_images_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give `val`"):
        train_and_val(folder(tmp_path, {"a": 1, "b": 1}), None, 0)


def listed(path: Path, *lines: str) -> Path:
    """A list at `path`, with an empty file for each name in its first column that has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in lines[1:]:
        (path.parent / line.split(",")[0]).touch()
    path.write_text("\n".join(lines) + "\n")
    return path


def several(tmp_path: Path, rows: list[str]) -> ImageList:
    """Images with several labels: `rows` are the cells of column `labels`."""
    return find_labeled(listed(tmp_path / "several.csv", "path,labels", *(f"{i}.png,{row}" for i, row in enumerate(rows))))


def test_the_part_set_aside_has_the_smallest_hashes_of_each_class(tmp_path: Path) -> None:
    images = folder(tmp_path, {"a": 10, "b": 7})
    expected = set()
    for name, count in (("a", 2), ("b", 1)):
        members = [f"{name}/{path.name}" for path in (images / name).iterdir()]
        members.sort(key=lambda one: int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8, key=b"5").digest(), "little"))
        expected |= {images / member for member in members[:count]}
    assert paths(train_and_val(images, None, seed=5)[1]) == expected


def test_an_image_more_or_less_moves_hardly_any_other(tmp_path: Path) -> None:
    images = folder(tmp_path, {"a": 50, "b": 50})
    before = paths(train_and_val(images, None, 0)[1])
    (images / "a" / "extra.png").touch()
    assert len(before ^ paths(train_and_val(images, None, 0)[1])) <= 2
    (images / "a" / "extra.png").unlink()
    for gone in sorted(before)[:3]:
        gone.unlink()
        after = paths(train_and_val(images, None, 0)[1])
        assert before - {gone} <= after
        assert len(after) <= len(before)
        before = after


def test_moving_the_folder_keeps_the_split(tmp_path: Path) -> None:
    images = folder(tmp_path / "one", {"a": 20, "b": 20})
    before = {path.relative_to(images) for path in paths(train_and_val(images, None, 0)[1])}
    moved = images.rename(tmp_path / "two")
    assert {path.relative_to(moved) for path in paths(train_and_val(moved, None, 0)[1])} == before


def test_several_labels_are_set_aside_by_the_rarest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["|".join(name for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.08)) if rng.random() < share) for _ in range(300)]
    files = several(tmp_path, rows)
    train, val = train_and_val(tmp_path / "several.csv", None, 0)
    assert len(train) + len(val) == 300
    assert not paths(train) & paths(val)
    for share in val.counts() / files.counts():
        assert share == pytest.approx(0.2, abs=0.05)
    assert train.targets is not None
    assert val.targets is not None
    without = (~val.targets.any(axis=1)).sum(), rows.count("")
    assert without[0] == round(0.2 * without[1])
    assert paths(train_and_val(tmp_path / "several.csv", None, 1)[1]) != paths(val)


def test_the_last_image_of_a_class_is_trained_on(tmp_path: Path) -> None:
    several(tmp_path, ["a|c", "a", "b|c", "b"])  # a and b, who choose first, could take both images of c
    for seed in range(10):
        train, val = train_and_val(tmp_path / "several.csv", None, seed)
        assert len(val) >= 1
        assert (train.counts() >= 1).all()
    several(tmp_path, ["a|b", "c|d"])
    with pytest.raises(UserError, match="give `val`"):
        train_and_val(tmp_path / "several.csv", None, 0)


def test_a_split_column_is_followed_and_val_comes_before_test(tmp_path: Path) -> None:
    rows = ["1.png,x,train", "2.png,y,train", "3.png,x,test", "4.png,y,test"]
    table = listed(tmp_path / "l.csv", "path,label,split", *rows)
    train, val = train_and_val(table, None, 0)
    assert (per_class(train), per_class(val)) == ({"x": 1, "y": 1}, {"x": 1, "y": 1})
    assert paths(val) == {tmp_path / "3.png", tmp_path / "4.png"}
    listed(table, "path,label,split", *rows, "5.png,x,val")
    assert paths(train_and_val(table, None, 0)[1]) == {tmp_path / "5.png"}
    other = listed(tmp_path / "other/o.csv", "path,label,split", "6.png,y,val", "7.png,x,train")
    assert paths(train_and_val(table, other, 0)[1]) == {tmp_path / "other/6.png"}


def test_val_is_written_as_train_is(tmp_path: Path) -> None:
    many = listed(tmp_path / "many.csv", "path,labels", "1.png,x|y", "2.png,y", "3.png,")
    one = listed(tmp_path / "one.csv", "path,label", "4.png,x", "5.png,y")
    train, val = train_and_val(many, one, 0)
    assert val.labels is None
    assert val.targets is not None
    assert val.targets.tolist() == [[True, False], [False, True]]
    with pytest.raises(UserError, match="many.csv has several labels an image, but .*one.csv has one"):
        train_and_val(one, many, 0)
    assert train.with_targets() is train


REFUSED = [
    (["1.png,x,train", "2.png,y,train"], "has rows whose split is 'train' but none whose split is 'val' or 'test'"),
    (["1.png,x,val", "2.png,y,val"], "is divided into val by its column split"),
    (
        ["1.png,x,train", "2.png,y,train", "3.png,z,val"],
        r"l.csv, line 4: label 'z' is not one of the 2 known classes \('x', 'y'\)",
    ),
    (["1.png,x,train", "2.png,y,train", "./1.png,x,val"], r"l.csv, lines 2 and 4: '.*/1.png' is listed for training and for val"),
    (["1.png,x,", "2.png,y,", "2.png,x,"], r"l.csv, lines 3 and 4: '.*/2.png' is listed more than once"),
    ([",x,class", ",y,class", "1.png,x,train", "2.png,y,val"], "the class 'y' has validation images but no training image"),
    (["1.png,x,train", "2.png,x,train", "3.png,x,val"], "only the class 'x'"),
]


@pytest.mark.parametrize(("rows", "message"), REFUSED, ids=[case[1][:30] for case in REFUSED])
def test_what_cannot_be_divided_is_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train_and_val(listed(tmp_path / "l.csv", "path,label,split", *rows), None, 0)
    assert "\n" not in str(caught.value)


def test_an_image_in_train_and_val_is_refused_with_both_places(tmp_path: Path) -> None:
    images = folder(tmp_path / "p", {"a": 2, "b": 2})
    train = listed(tmp_path / "t.csv", "path,label", "p/a/0.png,a", "p/b/0.png,b")
    val = listed(tmp_path / "v.csv", "path,label", "p/a/1.png,a", "p/b/0.png,b")
    shared = "'.*/p/b/0.png' is a training image"
    with pytest.raises(UserError, match=rf"{shared} \(.*t.csv, line 3\) and a validation image \(.*v.csv, line 3\)"):
        train_and_val(train, val, 0)
    with pytest.raises(UserError, match=r"is a training image \(.*/p\) and a validation image \(.*v.csv, line 2\)"):
        train_and_val(images, val, 0)


def test_an_image_listed_twice_for_training_only_is_allowed(tmp_path: Path) -> None:
    rows = ["1.png,x,train", "1.png,x,train", "2.png,y,train", "3.png,x,val"]
    assert per_class(train_and_val(listed(tmp_path / "l.csv", "path,label,split", *rows), None, 0)[0]) == {"x": 2, "y": 1}


def test_a_class_folder_that_only_val_has_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 1, "b": 1})
    folder(tmp_path / "val", {"a": 1, "c": 1})
    with pytest.raises(UserError, match="val/c is a class that is not one of the 2 known classes \\('a', 'b'\\)"):
        train_and_val(tmp_path, None, 0)


def test_classes_without_a_validation_image_are_noted(tmp_path: Path) -> None:
    train, val = train_and_val(folder(tmp_path, {"a": 10, "b": 1, "c": 1}), None, 0)
    assert note_on_val(val) == "no validation image of 2 of 3 classes: b, c"
    assert note_on_val(train) is None
    many = replace(val, classes=tuple("abcdefgh"))
    assert note_on_val(many) == "no validation image of 7 of 8 classes: b, c, d, e, f and 2 more"


def test_few_of_several_labels_keep_every_class(tmp_path: Path) -> None:
    files = several(tmp_path, ["a"] * 40 + ["b"] * 10 + ["a|c"] * 2 + [""] * 10)
    for seed in range(5):
        few = few_per_class(files, 3, seed)
        assert len(few) == 3
        assert (few.counts() >= 1).all()
        more = few_per_class(files, 12, seed)
        assert paths(few) < paths(more)
        assert more.targets is not None
        a, b, c = more.counts()
        assert (a, b, c, (~more.targets.any(axis=1)).sum()) == (4, 4, 2, 4)
    assert paths(few_per_class(files, 62, 0)) == paths(files)
    assert paths(few_per_class(files, 12, 0)) != paths(few_per_class(files, 12, 1))


def same(one: ImageList, other: ImageList) -> bool:
    """Whether two lists have the same files in the same order, with the same labels of the same classes."""
    labels = [(files.labels, files.targets) for files in (one, other)]
    return (
        list(one.paths()) == list(other.paths())
        and one.classes == other.classes
        and all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(*labels, strict=True))
        and one.digest == other.digest
    )


def stored(path: Path, train: ImageList, val: ImageList) -> Path:
    path.write_bytes(split_table(train, val).encode("utf-8", "surrogateescape"))
    return path


def test_a_stored_split_reads_back_from_elsewhere(tmp_path: Path) -> None:
    images = folder(tmp_path / "with, comma", {"cat": 6, 'dog "x" |': 7, "fish": 1})
    train, val = train_and_val(images, None, 3)
    table = stored(tmp_path / "split.csv", train, val)
    again = train_and_val(table, None, 99)
    assert same(again[0], train)
    assert same(again[1], val)
    assert split_table(*again) == split_table(train, val)
    assert same(find_labeled(table, "val", classes=train.classes), val)


def test_a_stored_split_keeps_classes_without_images_and_their_order(tmp_path: Path) -> None:
    files = replace(several(tmp_path, ["b|a", "", "a"]), classes=("z", "empty"))
    train, val = files.subset([0, 1]), files.subset([2])
    assert same(train_and_val(stored(tmp_path / "split.csv", train, val), None, 0)[0], train)
    assert files.targets is not None
    wider = replace(files, classes=("z", "empty", "a"), targets=np.pad(files.targets, ((0, 0), (0, 1))))
    again = train_and_val(stored(tmp_path / "split.csv", wider.subset([0, 1]), wider.subset([2])), None, 0)
    assert (again[0].classes, again[1].classes) == (wider.classes, wider.classes)
    assert again[0].counts().tolist() == [1, 1, 0]
    with pytest.raises(UserError, match=r"the class 'a\|b' has a \| in its name"):
        split_table(replace(train, classes=("a|b", "c")), val)


# Any name that a file can have, as bytes; leading and trailing spaces, quotes, newlines and bytes that are no text included.
NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, ord("/")} & set(name) and name not in (b".", b".."))
CLASSES = NAMES.map(os.fsdecode).filter(lambda name: bool(name.strip()))


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        NAMES | st.sampled_from([b"a,b", b'"', b"\r", b"x\ny", b" s ", b"caf\xe9"]), min_size=4, max_size=8, unique=True
    ),
    classes=st.lists(CLASSES, min_size=2, max_size=4, unique=True),
    is_several=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_name_survives_a_stored_split(names: list[bytes], classes: list[str], is_several: bool, seed: int) -> None:
    if is_several:
        classes = [name.replace("|", "/") for name in classes]
        if len(set(classes)) < len(classes):
            return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        for name in names:
            Path(os.fsdecode(os.fsencode(root) + b"/" + name)).touch()
        rng = np.random.default_rng(seed)
        targets = rng.random((len(names), len(classes))) < 0.4 if is_several else None
        labels = None if is_several else rng.integers(0, len(classes), len(names))
        cut = len(names) // 2
        if targets is not None:
            targets[0] = True  # the training part has every class that the validation part has
        if labels is not None:
            labels[cut:] = labels[:cut].repeat(2)[: len(names) - cut]
        files = ImageList.of(root, names, classes=classes, labels=labels, targets=targets)
        train, val = files.subset(range(cut)), files.subset(range(cut, len(names)))
        again = train_and_val(stored(Path(folder) / "split.csv", train, val), None, 0)
        assert same(again[0], train)
        assert same(again[1], val)


def test_folds_share_out_every_class_evenly_and_every_image_once(tmp_path: Path) -> None:
    images = folder(tmp_path, {"cat": 11, "dog": 23, "fish": 1, "hen": 2})
    whole = find_labeled(images)
    parts = [train_and_val(images, None, 3, fold=(number, 4)) for number in range(1, 5)]
    seen = [path for _, val in parts for path in paths(val)]
    alone = {whole.path(index) for index in np.flatnonzero(fold_of(whole, 3, 4) == -1).tolist()}
    assert [path.parent.name for path in alone] == ["fish"]
    assert sorted([*seen, *alone]) == sorted(paths(whole))
    for train, val in parts:
        assert paths(train) == paths(whole) - paths(val)
        assert set(per_class(train)) == {"cat", "dog", "fish", "hen"}
        assert per_class(val)["cat"] in (2, 3)
        assert per_class(val)["dog"] in (5, 6)
        assert len(val) == 9
    assert paths(train_and_val(images, None, 4, fold=(1, 4))[1]) != paths(parts[0][1])
    with pytest.raises(UserError, match="fold 37 of 40 would have no image to validate on, of 37; give fewer `folds`"):
        train_and_val(images, None, 3, fold=(37, 40))


def test_folds_leave_a_val_folder_alone(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 6, "b": 6})
    folder(tmp_path / "val", {"a": 2, "b": 2})
    train, val = train_and_val(tmp_path, None, 0, fold=(2, 3))
    assert paths(train) | paths(val) == paths(find_labeled(tmp_path, "train"))
    assert per_class(val) == {"a": 2, "b": 2}


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_several_labels_are_stratified(seed: int, tmp_path: Path) -> None:
    targets = np.random.default_rng(seed).random((60, 5)) < (0.5, 0.3, 0.2, 0.1, 0.0)
    targets[0, 4] = True  # the only one of its class
    rows = [
        ",".join((f"{index}.png", "|".join(f"c{label}" for label in np.flatnonzero(row)))) for index, row in enumerate(targets)
    ]
    folder(tmp_path, {"": 60})
    table = tmp_path / "list.csv"
    table.write_text("\n".join(["path,labels", *rows]))
    files = find_labeled(table)
    assert files.targets is not None
    found = fold_of(files, seed, 4)
    assert found[0] == -1
    assert (found >= 0).sum() >= 59
    sizes, counts = np.bincount(found[1:], minlength=4), np.array([files.targets[found == fold].sum(0) for fold in range(4)])
    assert np.ptp(sizes) <= 3
    assert (np.ptp(counts, axis=0) <= 3).all()
    for fold in range(4):
        assert files.targets[found != fold].any(0).all()
