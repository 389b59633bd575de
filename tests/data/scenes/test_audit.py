"""Counts against hand-made masks and the published CamVid; what cannot be trained on is refused with the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitkit.data.scenes.audit import audit
from beitkit.data.scenes.scenes import Scenes, find_scenes
from beitkit.errors import UserError

CAMVID = Path(__file__).resolve().parents[4] / "shared" / "data" / "camvid"
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "sidewalk", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)


def scenes(path: Path, *masks: object, names: tuple[str, ...] = ("sky", "road", "car"), **table: object) -> Scenes:
    """Images of 4x2 pixels with these masks."""
    (path / "classes.json").write_text(json.dumps({"names": names, **table}))
    for index, rows in enumerate(masks):
        for folder in ("images", "masks"):
            (path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (4, 2)).save(path / "images" / f"{index}.png")
        Image.fromarray(np.array(rows, dtype=np.uint8)).save(path / "masks" / f"{index}.png")
    return find_scenes(path)


def test_counts_of_pixels_and_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 2)).save(tmp_path / "images" / "lonely.png")
    found = audit(scenes(tmp_path, [[0, 0, 0, 1]] * 2, [[0, 255, 255, 255]] * 2, [[255] * 4] * 2))
    assert (found.pairs, found.read) == (3, 3)
    assert (found.pixels, found.images, found.ignored) == ((8, 2, 0), (2, 1, 0), 14)
    assert found.shares == (0.8, 0.2, 0)
    assert found.ignored_share == 14 / 24
    assert found.rows() == [
        ("sky", "80.00%", "2"),
        ("road", "20.00%", "1"),
        ("car", "0.00%", "0"),
        ("(ignored)", "58.33% of all", ""),
    ]
    assert found.notes() == (
        "never seen: car",
        "images without a counted pixel: 1 (2.png)",
        "images without a mask, left out: 1 (lonely.png)",
    )


def test_nothing_odd_gives_no_notes(tmp_path: Path) -> None:
    assert audit(scenes(tmp_path, [[0, 1, 2, 255]] * 2)).notes() == ()


def test_of_many_masks_a_sample_is_read_and_told(tmp_path: Path) -> None:
    many = scenes(tmp_path, *([[0, 1, 2, index % 3]] * 2 for index in range(9)))
    found = audit(many, seed=1, limit=4)
    assert (found.read, sum(found.pixels)) == (4, 32)
    assert "4 of 9 masks were read, drawn by seed" in found.notes()
    assert audit(many, seed=1, limit=4) == found


@pytest.mark.parametrize(
    ("rows", "table", "message"),
    [
        (
            [[0, 1, 3, 0]] * 2,
            {},
            r"the mask .*masks/1.png: has the value 3; .*classes.json has 3 classes with values from 0",
        ),
        ([[0, 1, 255, 0]] * 2, {"ignore": []}, r"the mask .*masks/1.png: has the value 255, but .* nothing is ignored"),
        ([[0, 1, 1]] * 2, {}, r"masks/1.png: has 3x2 pixels, but its image 1.png 4x2"),
        ([[[9, 9, 9]] * 4] * 2, {}, r"masks/1.png: holds colors, but .*classes.json has no colors"),
    ],
)
def test_impossible_masks_are_refused(tmp_path: Path, rows: object, table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        audit(scenes(tmp_path, [[0, 1, 2, 0]] * 2, rows, **table))
    assert "\n" not in str(caught.value)


def test_several_faults_are_counted_and_damaged_masks_are_faults(tmp_path: Path) -> None:
    data = scenes(tmp_path, [[0, 1, 2, 0]] * 2, [[7] * 4] * 2, [[0, 1, 2, 0]] * 2)
    data.masks.path(0).write_bytes(data.masks.path(0).read_bytes()[:50])
    with pytest.raises(UserError, match="2 of 3 masks cannot be used, the first one is .*masks/0.png"):
        audit(data)


def test_damaged_images_are_told_and_refused_where_there_is_no_other(tmp_path: Path) -> None:
    data = scenes(tmp_path, [[0, 1, 2, 0]] * 2, [[0, 1, 2, 0]] * 2)
    data.files.path(1).write_text("nothing")
    assert audit(data).notes() == ("images that cannot be opened: 1 (1.png)",)
    data.files.path(0).write_text("nothing")
    with pytest.raises(UserError, match="none of the 2 images can be opened"):
        audit(data)


def test_masks_in_which_nothing_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every pixel of the 1 masks in .* is ignored"):
        audit(scenes(tmp_path, [[255] * 4] * 2))


def test_turned_images_are_counted(tmp_path: Path) -> None:
    data = scenes(tmp_path, *([[0, 1, 2, 0]] * 2 for _ in range(4)))
    for index, (orientation, size) in enumerate([(6, (4, 2)), (6, (2, 4)), (3, (4, 2)), (1, (4, 2))]):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(data.files.path(index), exif=exif)
    found = audit(data)
    # 0: before the turn; 1: upright already; 2: half a turn, which sizes do not tell; 3: not turned.
    assert found.turned == 1
    assert [path.name for path in found.taken_upright] == ["2.png"]
    assert len(found.notes()) == 2


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not there")
def test_camvid(tmp_path: Path) -> None:
    table = tmp_path / "classes.json"
    table.write_text(json.dumps({"names": CAMVID_CLASSES, "ignore": [11]}))
    train, val = (find_scenes(CAMVID, split=split, classes=table) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    found = audit(val)
    # Shares of all pixels, counted apart from this code: sky 9.18%, road 28.95%, ignored 1.70%.
    counted = 1 - found.ignored_share
    assert found.ignored_share == pytest.approx(0.0170, abs=5e-5)
    assert found.shares[0] * counted == pytest.approx(0.0918, abs=5e-5)
    assert found.shares[3] * counted == pytest.approx(0.2895, abs=5e-5)
    assert found.notes() == ()
