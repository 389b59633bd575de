"""Images and masks in archives and indexes: the same pairs, pixel by pixel, as in two folders."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitkit.configs.data import ColumnsConfig
from beitkit.data.scenes.audit import audit
from beitkit.data.scenes.layout import scene_splits
from beitkit.data.scenes.scenes import Scenes, as_csv, find_scenes, set_aside_before, train_and_val_scenes
from beitkit.data.sources.find import find_images
from beitkit.data.sources.index import write_index
from beitkit.errors import UserError

COUNT = 6


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def contents() -> list[tuple[bytes, bytes]]:
    """A JPEG and the PNG of its mask, for each scene."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (12 + index, 16, 3), dtype=np.uint8) for index in range(COUNT)]
    masks = [np.repeat(np.arange(16, dtype=np.uint8)[None] // 6, 12 + index, axis=0) for index in range(COUNT)]
    return [(encoded(image, "JPEG"), encoded(mask, "PNG")) for image, mask in zip(images, masks, strict=True)]


@pytest.fixture
def folder(tmp_path: Path, contents: list[tuple[bytes, bytes]]) -> Path:
    for part in ("images", "masks"):
        (tmp_path / "scenes" / part).mkdir(parents=True)
    for index, (image, mask) in enumerate(contents):
        (tmp_path / "scenes" / "images" / f"{index}.jpg").write_bytes(image)
        (tmp_path / "scenes" / "masks" / f"{index}.png").write_bytes(mask)
    return tmp_path / "scenes"


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def parquet(path: Path, image: str, mask: str, pairs: list[tuple[bytes, bytes]], **others: list[Any]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    columns = {name: [{"bytes": pair[side], "path": None} for pair in pairs] for side, name in enumerate((image, mask))}
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns | others), path, row_group_size=2)
    return path


def side_by_side(pairs: list[tuple[bytes, bytes]], first: int = 0) -> dict[str, bytes]:
    """Members `3.jpg` and `3.png`."""
    return {
        f"{index}.{ending}": pair[side] for index, pair in enumerate(pairs, first) for side, ending in enumerate(("jpg", "png"))
    }


def same(one: Scenes, other: Scenes) -> bool:
    if len(one) != len(other) or one.classes != other.classes:
        return False
    pairs = ((one.read(index), other.read(index)) for index in range(len(one)))
    return all((a.image == b.image).all() and (a.label_map == b.label_map).all() for a, b in pairs)


NAMINGS = [
    ("images/{}.jpg", "masks/{}.png"),
    ("set/JPEGs/images/{}.jpg", "set/JPEGs/labels/{}_mask.png"),
    ("{}.jpg", "{}.png"),
    ("{}.jpg", "{}.mask.png"),
    ("{}.jpg", "{}.seg.png"),
    ("{}.jpg", "{}_label.png"),
]


@pytest.mark.parametrize(("image", "mask"), NAMINGS)
def test_tar_members_pair_by_name(
    tmp_path: Path, folder: Path, contents: list[tuple[bytes, bytes]], image: str, mask: str
) -> None:
    members = {}
    for index, pair in enumerate(contents):
        members |= {image.format(index): pair[0], mask.format(index): pair[1]}
    path = tar(tmp_path / "x.tar", members)
    scenes = find_scenes(path)
    assert same(scenes, find_scenes(folder))
    assert (audit(scenes).pixels, audit(scenes).notes()) == (audit(find_scenes(folder)).pixels, ())
    assert scene_splits(path) == ()


def test_an_index_of_the_folder(tmp_path: Path, folder: Path) -> None:
    write_index(tmp_path / "x.index", find_images(folder))
    assert same(find_scenes(tmp_path / "x.index"), find_scenes(folder))


@pytest.mark.parametrize(("image", "mask"), [("image", "annotation"), ("pixel_values", "label"), ("image", "mask"), ("a", "b")])
def test_two_columns_of_parquet(tmp_path: Path, folder: Path, contents: list[tuple[bytes, bytes]], image: str, mask: str) -> None:
    path = parquet(tmp_path / "x.parquet", image, mask, contents, scene=["street"] * COUNT)
    if image == "a":
        with pytest.raises(UserError, match="has only a, b; expected one called mask, annotation, label .*`columns.label`"):
            find_scenes(path)
        assert same(find_scenes(path, columns=ColumnsConfig(label=("b",))), find_scenes(folder))
        return
    assert same(find_scenes(path), find_scenes(folder))


def test_splits_by_names_of_archives_and_of_folders_in_them(
    tmp_path: Path, folder: Path, contents: list[tuple[bytes, bytes]]
) -> None:
    whole = find_scenes(folder)
    members = {}
    for index, pair in enumerate(contents):
        part = "train" if index < 4 else "val"
        members |= {f"images/{part}/{index}.jpg": pair[0], f"masks/{part}/{index}.png": pair[1]}
    one = tar(tmp_path / "x.tar", members)
    for part, chosen in (("train", slice(0, 4)), ("validation", slice(4, None))):
        parquet(tmp_path / "tables" / f"{part}-00000-of-00001.parquet", "image", "annotation", contents[chosen])
        tar(tmp_path / "shards" / f"{part}-000000.tar", side_by_side(contents[chosen], chosen.start or 0))
    for path in (one, tmp_path / "tables", tmp_path / "shards"):
        assert scene_splits(path) == ("train", "val")
        train, val = train_and_val_scenes(path, None, 0)
        assert same(train, whole.subset(range(4)))
        assert same(val, whole.subset(range(4, 6)))
        with pytest.raises(UserError, match=r"is divided into train, val|choose one"):
            find_scenes(path)
        with pytest.raises(UserError, match="has no split 'test'"):
            find_scenes(path, split="test")


def test_the_part_set_aside_is_found_again(tmp_path: Path, contents: list[tuple[bytes, bytes]]) -> None:
    path = tar(tmp_path / "x.tar", side_by_side(contents))
    train, val = train_and_val_scenes(path, None, 3)
    (tmp_path / "scenes.csv").write_text(as_csv({"train": train, "val": val}))
    assert same(set_aside_before(tmp_path / "scenes.csv", find_scenes(path)), val)
    with pytest.raises(UserError, match="names 1 images for validation, but 0 of them are there"):
        set_aside_before(tmp_path / "scenes.csv", train)


def test_classes_lie_beside_the_archive(tmp_path: Path, contents: list[tuple[bytes, bytes]]) -> None:
    path = tar(tmp_path / "x.tar", side_by_side(contents))
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["sky", "road", "car"]}))
    assert find_scenes(path).classes == ("sky", "road", "car")


def test_archives_that_lie_in_the_folder_are_passed_over(folder: Path) -> None:
    tar(folder / "download.tar", {"a.jpg": b""})
    assert len(find_scenes(folder)) == COUNT


def test_what_has_no_masks_is_one_line(tmp_path: Path, contents: list[tuple[bytes, bytes]]) -> None:
    bare = tar(tmp_path / "bare.tar", {f"{index}.jpg": pair[0] for index, pair in enumerate(contents)})
    only = tar(tmp_path / "only.tar", {f"masks/{index}.png": pair[1] for index, pair in enumerate(contents)})
    for path, columns, message in (
        (bare, ColumnsConfig(), r"bare\.tar holds images but no masks; masks are known by a folder such as masks/"),
        (only, ColumnsConfig(), r"only\.tar holds masks but no images"),
        (bare, ColumnsConfig(label=("x",)), r"`columns` names columns of a table or of Parquet files, but .* has none"),
        (bare, ColumnsConfig(separator="comma"), r"`columns\.separator` has no meaning"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            find_scenes(path, columns=columns)
        assert "\n" not in str(caught.value)
