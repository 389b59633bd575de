"""Every layout gives the right pairs and classes; what cannot be paired or understood is refused in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding.decode import BrokenImage, to_tensor
from beitkit.data.scenes.class_names import ADE20K, CAMVID, VOC
from beitkit.data.scenes.label_codes import read_classes, voc_palette
from beitkit.data.scenes.layout import scene_splits
from beitkit.data.scenes.scenes import Scenes, as_csv, find_scenes, train_and_val_scenes
from beitkit.data.stream import evaluation_stream
from beitkit.errors import UserError

ROWS = [[0, 1, 255, 0], [1, 1, 0, 0]]


def write_image(path: Path, size: tuple[int, int] = (4, 2), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 90, 200)).save(path, **options)  # type: ignore[arg-type]


def mask(path: Path, rows: object = ROWS, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(rows, dtype=np.uint8))
    if palette:
        image.putpalette([part for color in voc_palette(256) for part in color])
    image.save(path)


def pairs(scenes: Scenes) -> dict[str, str]:
    return {scenes.files.path(index).name: scenes.masks.path(index).name for index in range(len(scenes))}


def ids(scenes: Scenes, index: int = 0) -> list[list[int]]:
    return np.asarray(scenes.label_map(index)).tolist()


def refused(path: Path, message: str, split: Literal["train"] | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_scenes(path, split=split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("images", "labels"), ("IMG", "Annotations"), ("JPEGImages", "SegmentationClass")],
)
@pytest.mark.parametrize("ending", ["", "_mask", "_L", "_labelIds"])
def test_two_folders_pair_by_name(tmp_path: Path, images: str, masks: str, ending: str) -> None:
    for stem in "ba":
        write_image(tmp_path / images / f"{stem}.jpg")
        mask(tmp_path / masks / f"{stem}{ending}.png")
    assert scene_splits(tmp_path) == ()
    assert pairs(find_scenes(tmp_path)) == {"a.jpg": f"a{ending}.png", "b.jpg": f"b{ending}.png"}


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_splits_below_both_folders_or_above_them(tmp_path: Path, layout: str) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / layout.format(split) / f"{split}.png")
        mask(tmp_path / layout.format(split).replace("images", "masks") / f"{split}.png")
    assert scene_splits(tmp_path) == ("train", "val")
    assert pairs(find_scenes(tmp_path, split="val")) == {"val.png": "val.png"}
    train, val = train_and_val_scenes(tmp_path, None, 0)
    assert (pairs(train), pairs(val)) == ({"train.png": "train.png"}, {"val.png": "val.png"})
    assert val.code is train.code
    refused(tmp_path, "is divided into train, val; choose one")


def test_nested_folders_pair_by_their_whole_name(tmp_path: Path) -> None:
    for city in ("ulm", "bonn"):
        write_image(tmp_path / "leftImg8bit" / city / "1_leftImg8bit.png")
        mask(tmp_path / "gtFine" / city / "1_gtFine_labelIds.png", [[0, 1, 1, 0]] * 2 if city == "ulm" else ROWS)
    scenes = find_scenes(tmp_path)
    assert len(scenes) == 2
    assert ids(scenes, 1) == [[0, 1, 1, 0]] * 2
    assert ids(scenes, 0) == ROWS


def test_pascal_voc_by_its_lists(tmp_path: Path) -> None:
    for stem in ("2007_1", "2007_2", "2007_3", "no_mask"):
        write_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
    for stem in ("2007_1", "2007_2", "2007_3"):
        mask(tmp_path / "SegmentationClass" / f"{stem}.png", [[0, 15, 20, 255]] * 2, palette=True)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    (lists / "train.txt").write_text("2007_3\n2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    train, val = train_and_val_scenes(tmp_path, None, 0)
    assert list(pairs(train)) == ["2007_3.jpg", "2007_1.jpg"]
    assert list(pairs(val)) == ["2007_2.jpg"]
    assert train.classes == VOC
    assert ids(train) == [[0, 15, 20, 255]] * 2
    (lists / "train.txt").write_text("2007_3\nno_mask\n")
    refused(tmp_path, "train.txt, line 2: .*SegmentationClass has no image 'no_mask'", "train")


def test_ade20k_ignores_zero_and_begins_with_wall(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "training" / "ADE_train_1.jpg")
    mask(tmp_path / "annotations" / "training" / "ADE_train_1.png", [[0, 1, 150, 2]] * 2)
    scenes = find_scenes(tmp_path, split="train")
    assert scenes.classes == ADE20K
    assert (len(ADE20K), ADE20K[0], ADE20K[4], ADE20K[149]) == (150, "wall", "tree", "flag")
    assert ids(scenes) == [[255, 0, 149, 1]] * 2


def test_color_masks_by_a_table_and_their_refusal_without_one(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "f.png")
    mask(tmp_path / "labels" / "f_L.png", [[[0, 0, 0], [64, 128, 64], [192, 0, 128], [0, 0, 0]]] * 2)
    refused(tmp_path, r"f_L.png holds colors \(\[0, 0, 0\], \[64, 128, 64\], \[192, 0, 128\]\) and nothing says .*classes.json")
    table = {"names": ["Animal", "Archway"], "colors": [[64, 128, 64], [192, 0, 128]], "ignore": [[0, 0, 0]]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    assert ids(find_scenes(tmp_path)) == [[255, 0, 1, 255]] * 2


def test_classes_are_the_values_that_occur(tmp_path: Path) -> None:
    for stem, value in (("a", 0), ("b", 70), ("c", 9)):
        write_image(tmp_path / "images" / f"{stem}.png")
        mask(tmp_path / "masks" / f"{stem}.png", [[value, 255, value, value]] * 2)
    scenes = find_scenes(tmp_path)
    assert scenes.classes == ("class 0", "class 9", "class 70")
    assert [ids(scenes, index)[0] for index in range(3)] == [[0, 255, 0, 0], [2, 255, 2, 2], [1, 255, 1, 1]]


def test_the_palette_of_masks_colors_the_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png", [[0, 2, 5, 255]] * 2, palette=True)
    assert find_scenes(tmp_path).code.palette == ((0, 0, 0), (0, 128, 0), (128, 0, 128))


def test_camvid_is_known_by_its_names_with_values_or_with_colors(tmp_path: Path) -> None:
    """SegNet's grouping of the published 32 colors: 31 in 11 classes, and Void."""
    values, colors = tmp_path / "values", tmp_path / "colors"
    write_image(values / "images" / "train" / "0001TP_006690.png")
    mask(values / "labels" / "train" / "0001TP_006690.png", [[0, 3, 11, 10], [255, 1, 1, 8]])
    found = find_scenes(values, split="train")
    assert ids(found) == [[0, 3, 255, 10], [255, 1, 1, 8]]
    assert found.classes[:4] == ("sky", "building", "pole", "road")
    write_image(colors / "images" / "Seq05VD_f00000.png")
    wall, lane, truck, void = (64, 192, 0), (128, 0, 192), (192, 128, 192), (0, 0, 0)
    mask(colors / "masks" / "Seq05VD_f00000_L.png", [[wall, lane, truck, void]] * 2)
    assert ids(find_scenes(colors)) == [[1, 3, 8, 255]] * 2
    assert len({color for group in CAMVID.values() for color in group}) == 31
    stored = tmp_path / "stored.json"
    stored.write_text(found.code.as_json())
    assert read_classes(stored) == found.code
    write_image(colors / "images" / "mine.png")
    mask(colors / "masks" / "mine.png", [[wall, lane, truck, void]] * 2)
    refused(colors, "holds colors")


def test_several_colors_of_a_class(tmp_path: Path) -> None:
    table = tmp_path / "classes.json"
    table.write_text(json.dumps({"names": ["a", "b"], "colors": [[1, 2, 3], [[4, 5, 6], [7, 8, 9]]]}))
    write_image(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png", [[(1, 2, 3), (4, 5, 6), (7, 8, 9), (1, 2, 3)]] * 2)
    found = find_scenes(tmp_path)
    assert ids(found) == [[0, 1, 1, 0]] * 2
    assert found.code.palette == ((1, 2, 3), (4, 5, 6))
    table.write_text(found.code.as_json())
    assert read_classes(table) == found.code
    table.write_text(json.dumps({"names": ["a", "b"], "colors": [[1, 2, 3], [[4, 5, 6], [1, 2, 3]]]}))
    refused(tmp_path, "colors lists .1, 2, 3. twice")


def test_masks_of_black_and_white_are_explained(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png", [[0, 255, 0, 0]] * 2)
    with pytest.raises(UserError, match=r"only the value \[0\] besides 255, which is ignored unless") as caught:
        find_scenes(tmp_path)
    (tmp_path / "classes.json").write_text(str(caught.value).split("such as ")[1])
    assert ids(find_scenes(tmp_path)) == [[0, 1, 0, 0]] * 2


def test_names_that_do_not_pair(tmp_path: Path) -> None:
    for stem in "abc":
        write_image(tmp_path / "images" / f"{stem}.png")
        mask(tmp_path / "masks" / f"x{stem}.png")
    refused(tmp_path, "only 0 of 3 masks in .*masks have an image of the same name .* xa.png; name each mask as its image")


def test_what_has_no_partner_is_left_out_and_remembered(tmp_path: Path) -> None:
    for stem in "abcd":
        write_image(tmp_path / "images" / f"{stem}.png")
    for stem in "abx":
        mask(tmp_path / "masks" / f"{stem}.png")
    scenes = find_scenes(tmp_path)
    assert list(pairs(scenes)) == ["a.png", "b.png"]
    assert [path.name for path in scenes.images_without_mask] == ["c.png", "d.png"]
    assert [path.name for path in scenes.masks_without_image] == ["x.png"]


def test_ambiguous_names_and_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    mask(tmp_path / "masks" / "a_mask.png")
    refused(tmp_path, "a.png and a_mask.png both belong to the image a.png")
    (tmp_path / "masks" / "a_mask.png").unlink()
    write_image(tmp_path / "images" / "a.jpg")
    refused(tmp_path, "a.png could belong to a.jpg and to a.png")
    (tmp_path / "labels").mkdir()
    refused(tmp_path, "holds labels/ and masks/, any of which could be meant")


def test_missing_and_unknown_places(tmp_path: Path) -> None:
    refused(tmp_path / "none", "does not exist; give a folder with images/ and masks/")
    refused(tmp_path, "holds no images with masks; expected two folders in it, such as images/ and masks/")
    write_image(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    refused(tmp_path, "has no split 'train'; it is not divided", "train")
    refused(tmp_path / "images" / "a.png", "neither a folder nor a .csv table")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,mask\n", "first line must name the columns image and mask; found path, mask"),
        ("image,mask\n", "lists no pairs"),
        ("image,mask\na.png\n", "line 2: expected 2 columns"),
        ("image,mask,split\na.png,a.png,tain\n", "line 2: the split is 'tain'"),
        ("image,mask\n\nno.png,b.png\n", "line 3: there is no file 'no.png'"),
        ("image,mask\nno.png,b.png\n", "line 2: there is no file 'no.png'"),
    ],
)
def test_faulty_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    refused(tmp_path / "t.csv", message)


def many(path: Path, values: Mapping[int, int] = {}) -> Path:
    """Twenty pairs of two classes; some also show another."""
    for index in range(20):
        write_image(path / "images" / f"{index:02}.png")
        mask(path / "masks" / f"{index:02}.png", [[0, 1, values.get(index, 0), 255]] * 2)
    return path


def test_a_fifth_is_set_aside_by_seed_and_name(tmp_path: Path) -> None:
    whole = many(tmp_path)
    train, val = train_and_val_scenes(whole, None, 3)
    assert (len(train), len(val)) == (16, 4)
    assert not set(pairs(train)) & set(pairs(val))
    assert pairs(train_and_val_scenes(whole, None, 3)[1]) == pairs(val)
    assert pairs(train_and_val_scenes(whole, None, 4)[1]) != pairs(val)
    # Without one of the training images the others stay where they are.
    (whole / "images" / next(iter(pairs(train)))).unlink()
    fewer = train_and_val_scenes(whole, None, 3)[1]
    assert pairs(fewer) == pairs(val)


def test_a_class_that_one_image_shows_stays_in_training(tmp_path: Path) -> None:
    plain = list(pairs(train_and_val_scenes(many(tmp_path), None, 0)[1]))
    rare = many(tmp_path, {int(plain[0][:2]): 2})
    train, val = train_and_val_scenes(rare, None, 0)
    assert plain[0] in pairs(train)
    assert set(plain[1:]) < set(pairs(val))
    assert len(val) == 4


def test_the_split_reads_back_from_its_table(tmp_path: Path) -> None:
    train, val = train_and_val_scenes(many(tmp_path / "data, all"), None, 0)
    table = tmp_path / "run" / "scenes.csv"
    table.parent.mkdir()
    table.write_text(as_csv({"train": train, "val": val}))
    (table.parent / "classes.json").write_text(train.code.as_json())
    again = train_and_val_scenes(table, None, 5)
    for scenes, read in zip((train, val), again, strict=True):
        assert pairs(read) == pairs(scenes)
        assert read.classes == scenes.classes
        assert ids(read) == ids(scenes)


def test_validation_of_ones_own_has_the_training_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "val" / "images" / "v.png")
    mask(tmp_path / "val" / "masks" / "v.png", [[1, 1, 1, 1]] * 2)
    train, val = train_and_val_scenes(many(tmp_path / "train"), tmp_path / "val", 0)
    assert (len(train), len(val)) == (20, 1)
    assert ids(val) == [[1, 1, 1, 1]] * 2


def test_a_single_pair_cannot_be_divided(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match="single pair.*give `val`"):
        train_and_val_scenes(tmp_path, None, 0)


def test_the_digest_knows_pairs_order_and_classes(tmp_path: Path) -> None:
    scenes = find_scenes(many(tmp_path))
    assert scenes.digest == find_scenes(tmp_path).digest
    digests = {scenes.digest, scenes.subset([1, 0]).digest}
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["x", "y"]}))
    assert len(digests | {find_scenes(tmp_path).digest}) == 3


def write_turned_image(path: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_image(path, size, exif=exif)


def test_a_mask_from_before_the_turn_is_turned_along(tmp_path: Path) -> None:
    write_turned_image(tmp_path / "images" / "a.jpg", 6, (4, 2))  # upright after a quarter turn clockwise: 2 wide, 4 high
    mask(tmp_path / "masks" / "a.png", ROWS)
    scenes = find_scenes(tmp_path)
    assert ids(scenes) == np.rot90(np.array(ROWS), -1).tolist()
    image, label_map = scenes.read(0)
    assert tuple(image.shape[1:]) == tuple(label_map.shape) == (4, 2)


def test_a_mask_of_the_upright_size_stays(tmp_path: Path) -> None:
    write_turned_image(tmp_path / "images" / "a.jpg", 8, (2, 4))
    mask(tmp_path / "masks" / "a.png", ROWS)
    assert ids(find_scenes(tmp_path)) == ROWS


def test_a_mask_of_another_size_is_a_broken_pair(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png", (4, 3))
    mask(tmp_path / "masks" / "a.png")
    with pytest.raises(BrokenImage, match="a.png: has 4x2 pixels, but its image a.png 4x3"):
        find_scenes(tmp_path).label_map(0)


def test_scenes_are_read_at_their_own_size_and_stream(tmp_path: Path) -> None:
    scenes = find_scenes(many(tmp_path))
    image, label_map = scenes.read(3)
    assert image[:, 0, 0].tolist() == [9, 90, 200]
    assert label_map.tolist() == [[0, 1, 0, 255]] * 2
    assert scenes.read(3, channels=1).image.shape == (1, 2, 4)

    def view(image: Image.Image, label_map: Image.Image, rng: random.Random) -> dict[str, Tensor]:
        return {"images": to_tensor(image), "label_map": to_tensor(label_map)[0]}

    dataset = ImageDataset(scenes.files, view, kind="evaluate", label_map=scenes.label_map)
    batches = list(evaluation_stream(dataset, 10))
    assert [tuple(batch["images"].shape) for batch in batches] == [(10, 3, 2, 4)] * 2
    assert all((batch["label_map"] == label_map).all() for batch in batches)
