"""Choosing among labelled pictures."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitkit.data.files import PictureList, find_labelled
from beitkit.data.labelled import as_csv, few_per_class, train_and_val
from beitkit.errors import UserError


def folder(path: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for index in range(count):
            (path / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path / name / f"{index}.png")
    return path


def per_class(files: PictureList) -> dict[str, int]:
    assert files.labels is not None
    return {files.classes[label]: count for label, count in sorted(Counter(files.labels.tolist()).items())}


def paths(files: PictureList) -> set[Path]:
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
    folder(tmp_path / "test", {"a": 1, "b": 1})
    assert per_class(train_and_val(tmp_path, None, 0)[1]) == {"a": 1, "b": 1}
    folder(tmp_path / "val", {"a": 2, "b": 2})
    assert per_class(train_and_val(tmp_path, None, 0)[1]) == {"a": 2, "b": 2}
    other = folder(tmp_path.parent / "other", {"a": 4, "b": 5})
    assert per_class(train_and_val(tmp_path, other, 0)[1]) == {"a": 4, "b": 5}


def test_few_labels_are_balanced_nested_in_the_list_and_drawn_by_the_seed(tmp_path: Path) -> None:
    files = find_labelled(folder(tmp_path, {"a": 10, "b": 10, "c": 3}))
    assert per_class(few_per_class(files, 6, 0)) == {"a": 2, "b": 2, "c": 2}
    assert per_class(few_per_class(files, 15, 0)) == {"a": 6, "b": 6, "c": 3}
    assert paths(few_per_class(files, 6, 0)) == paths(few_per_class(files, 6, 0))
    assert paths(few_per_class(files, 6, 0)) != paths(few_per_class(files, 6, 1))
    assert paths(few_per_class(files, 6, 0)) < paths(few_per_class(files, 9, 0))


@pytest.mark.parametrize("labels", [2, 24])
def test_too_few_or_too_many_labels_are_refused(tmp_path: Path, labels: int) -> None:
    files = find_labelled(folder(tmp_path, {"a": 10, "b": 10, "c": 3}))
    with pytest.raises(UserError, match=f"--labels {labels} must lie between the 3 classes and the 23"):
        few_per_class(files, labels, 0)


def test_single_pictures_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --val"):
        train_and_val(folder(tmp_path, {"a": 1, "b": 1}), None, 0)


def test_the_table_reads_back_as_the_same_list(tmp_path: Path) -> None:
    files = find_labelled(folder(tmp_path / "with, comma", {"a": 2, "b": 1}))
    table = tmp_path / "val.csv"
    table.write_text(as_csv(files))
    again = find_labelled(table)
    assert paths(again) == paths(files)
    assert files.labels is not None
    assert again.labels is not None
    assert np.array_equal(again.labels, files.labels)
