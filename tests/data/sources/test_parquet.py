"""Parquet files of others: which columns hold images and labels, told by names and types, and a refusal that ends as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from beitkit.configs.data import ColumnsConfig
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.index import write_index
from beitkit.errors import UserError

parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

FILES = [{"bytes": b"first", "path": "a.png"}, {"bytes": b"second", "path": "b.png"}]
OTHERS = [{"bytes": b"1st", "path": "a.png"}, {"bytes": b"2nd", "path": "b.png"}]
CIFAR = {
    "fine_label": {"_type": "ClassLabel", "names": ["oak", "rose"]},
    "coarse_label": {"_type": "ClassLabel", "names": ["tree", "flower"]},
}


def table(path: Path, columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> Path:
    content = pyarrow.table(columns)
    if features is not None:
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(content, path)
    return path


def labels(path: Path, columns: ColumnsConfig = ColumnsConfig()) -> list[str]:
    files = find_labeled(path, columns=columns)
    assert files.labels is not None
    return [files.classes[label] for label in files.labels]


def contents(path: Path, column: str | None = None) -> list[bytes]:
    files = find_images(path, column)
    sources = [files.source(index) for index in range(len(files))]
    return [source.content for source in sources if not isinstance(source, Path)]


@pytest.mark.parametrize("name", ["image", "img", "pixel_values", "x"])
def test_images_by_type_under_any_name(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / "t.parquet", {"label": ["u", "v"], name: FILES})
    assert contents(path) == [b"first", b"second"]
    assert labels(path) == ["u", "v"]


def test_several_columns_of_images_are_asked_for(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"before": FILES, "after": OTHERS})
    with pytest.raises(UserError, match=r"has images in the columns before, after; say which with `columns.image`"):
        find_images(path)
    assert contents(path, "after") == [b"1st", b"2nd"]
    # An index keeps what was said.
    write_index(tmp_path / "t.index", find_images(path, "after"))
    assert contents(tmp_path / "t.index") == [b"1st", b"2nd"]
    known = table(tmp_path / "k.parquet", {"mask": OTHERS, "image": FILES})
    assert contents(known) == [b"first", b"second"]


def test_plain_binary_by_its_name_or_by_the_option(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"jpg": [b"a", b"b"], "embedding": [b"c", b"d"]})
    assert contents(path) == [b"a", b"b"]
    assert contents(path, "embedding") == [b"c", b"d"]


def test_labels_of_cifar_100_are_asked_for(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"img": FILES, "fine_label": [1, 0], "coarse_label": [0, 1]}, CIFAR)
    with pytest.raises(UserError, match="has labels in the columns fine_label, coarse_label; say which with `columns.label`"):
        find_labeled(path)
    assert labels(path, ColumnsConfig(label=("fine_label",))) == ["rose", "oak"]
    assert labels(path, ColumnsConfig(label=("coarse_label",))) == ["tree", "flower"]


@pytest.mark.parametrize("name", ["labels", "class", "target", "kind"])
def test_labels_by_name_or_by_what_is_noted(tmp_path: Path, name: str) -> None:
    features = {"kind": {"_type": "ClassLabel", "names": ["oak", "rose"]}} if name == "kind" else None
    path = table(tmp_path / "t.parquet", {"image": FILES, "caption": ["p", "q"], name: [1, 0]}, features)
    assert labels(path) == (["rose", "oak"] if name == "kind" else ["1", "0"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ColumnsConfig(image="gone"),
            "its column 'gone' is missing; .* it has image, note, one of which `columns.image` can name",
        ),
        (ColumnsConfig(image="note"), "its column 'note' is string; expected binary"),
        (ColumnsConfig(label=("gone",)), "`columns.label` must name one column of it, got gone; it has image, note"),
        (ColumnsConfig(label=("image", "note")), "`columns.label` must name one column of it, got image, note"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path: Path, columns: ColumnsConfig, message: str) -> None:
    path = table(tmp_path / "t.parquet", {"image": FILES, "note": ["p", "q"]})
    with pytest.raises(UserError, match=message) as caught:
        find_labeled(path, columns=columns)
    assert "\n" not in str(caught.value)


def test_a_refusal_ends_as_a_refusal(tmp_path: Path) -> None:
    """A thread of Arrow that held bytes of Python when the program ended aborted it, in some of the runs."""
    table(tmp_path / "t.parquet", {"image": FILES * 500, "label": [0.5] * 1000})
    program = (
        "import sys\nfrom beitkit.data.sources.find import find_labeled\n"
        "try:\n    find_labeled(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n    sys.exit(2)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for _ in range(6):
        ended = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "t.parquet")],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (2, "")
        assert "row 0: the label is '0.5'" in ended.stdout
