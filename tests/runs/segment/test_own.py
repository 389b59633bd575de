"""Scenes that a caller gives as objects: the network, scores and masks that the same images and masks in files give."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset, IterableDataset

import beitkit
from beitkit.configs.train import LoopConfig
from beitkit.errors import UserError

MACHINE: dict[str, Any] = {"threads": 1, "device": "cpu", "precision": "float32"}
SHORT: dict[str, Any] = {
    **{"scratch": True, "size": "nano", "patch": 8, "image_size": 32, "head": "linear"},
    **{"steps": 4, "batch_size": 4, "workers": 0},
} | MACHINE
NAMES = ("ground", "disk", "sky")


def scene(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and three classes in it, the last rows of which are ignored."""
    chance = np.random.default_rng(index)
    height, width = chance.integers(32, 49, 2)
    label_map = chance.integers(0, 3, (4, 4)).repeat(13, 0).repeat(13, 1)[:height, :width].astype(np.uint8)
    label_map[-3:] = 255
    image = chance.integers(0, 96, (height, width, 3)) + 50 * (label_map[..., None] % 200)
    return image.astype(np.uint8), label_map


class Scenes(Dataset[Any]):
    """Some of the scenes, as Pillow images."""

    classes = NAMES

    def __init__(self, first: int = 0, count: int = 10) -> None:
        self.first, self.count, self.reads = first, count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.reads += 1
        image, label_map = scene(self.first + index)
        return Image.fromarray(image), Image.fromarray(label_map)


def written(path: Path, first: int = 0, count: int = 10) -> Path:
    """The same scenes as files, and a table that gives them the names that items have."""
    path.mkdir()
    for index in range(count):
        image, label_map = scene(first + index)
        Image.fromarray(image).save(path / f"{index}.png")
        Image.fromarray(label_map).save(path / f"{index}-mask.png")
        shutil.copyfile(path / f"{index}.png", path / f"{index}")  # without an ending, as the number of an item has none
    rows = [f"{index},{index}-mask.png" for index in range(count)]
    (path / "scenes.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    (path / "classes.json").write_text(json.dumps({"names": NAMES}))
    return path / "scenes.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("scenes") / "train")


@pytest.fixture(scope="module")
def there(table: Path) -> Path:
    """The run on files, a part of which is set aside."""
    return beitkit.segment(table, out=table.parent.parent / "there", **SHORT).folder


@pytest.fixture(scope="module")
def here(table: Path) -> Path:
    """The run on the items."""
    return beitkit.segment(Scenes(), out=table.parent.parent / "here", **SHORT).folder


def assert_same(one: Path, other: Path) -> None:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    assert numbers(one) == numbers(other)


def numbers(run: Path) -> list[dict[str, Any]]:
    """What the journal holds but for times."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "loss" in key or key.startswith("val/")} for line in lines]


def result(run: Path) -> dict[str, Any]:
    found = json.loads((run / "result.json").read_text())
    assert found.pop("val_digest")
    return found


def test_a_dataset_trains_the_network_that_files_train(here: Path, there: Path) -> None:
    assert_same(here, there)
    assert any("loss" in line for line in numbers(here))
    assert result(here) == result(there)
    assert (result(here)["images"], set(result(here)["class_iou"])) == (2, set(NAMES))
    report = (here / "report.html").read_text()
    assert "class, length and 10 items are compared" in report
    assert "(ignored)" in report  # the table of the classes' shares
    assert json.loads((here / "config.json").read_text())["images"].endswith("Scenes, 10 images>")


def test_validation_scenes_are_a_dataset_of_their_own_or_files(table: Path, tmp_path: Path) -> None:
    val = written(tmp_path / "judged", 20, 4)
    beitkit.segment(table, val=val, out=tmp_path / "files", **SHORT)
    for name, images, judged in (("both", Scenes(), Scenes(20, 4)), ("val", table, Scenes(20, 4)), ("images", Scenes(), val)):
        beitkit.segment(images, val=judged, out=tmp_path / name, **SHORT)
        assert_same(tmp_path / name, tmp_path / "files")
        assert result(tmp_path / name) == result(tmp_path / "files")


def test_an_item_is_read_once_for_its_image_and_its_label_map(here: Path, tmp_path: Path) -> None:
    given = Scenes()
    beitkit.segment(given, out=tmp_path / "workers", **SHORT | {"workers": 2})
    assert_same(tmp_path / "workers", here)
    looked_at = given.reads
    beitkit.segment(given, out=tmp_path / "alone", **SHORT)
    # Alone, what is looked at before and evaluated is read as well, and four batches of four items.
    assert given.reads - 2 * looked_at <= 16


def test_evaluate_and_predict_take_scenes(table: Path, here: Path, there: Path, tmp_path: Path) -> None:
    aside, also = beitkit.evaluate(Scenes(), model=here, **MACHINE), beitkit.evaluate(table, model=there, **MACHINE)
    assert aside.where.endswith("10 images> that was set aside for validation")
    assert (aside.images, aside.models[0].scores.measures) == (2, also.models[0].scores.measures)
    new, files = Scenes(20, 4), written(tmp_path / "new", 20, 4)
    found = beitkit.evaluate(new, model=(here, there), out=tmp_path / "evaluation", **MACHINE)
    expected = beitkit.evaluate(files, model=there, **MACHINE)
    assert found.images == 4
    assert [model.scores.measures for model in found.models] == [expected.models[0].scores.measures] * 2
    assert "4 images>: item 3" in (tmp_path / "evaluation" / "images.csv").read_text()
    beitkit.predict(new, model=here, out=tmp_path / "here", **MACHINE)
    beitkit.predict([tmp_path / "new" / f"{index}.png" for index in range(4)], model=there, out=tmp_path / "there", **MACHINE)
    for index in range(4):
        ours, theirs = (tmp_path / name / "index" / f"{index}.png" for name in ("here", "there"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_classes_come_from_the_attribute_a_file_or_the_values(table: Path, here: Path, there: Path, tmp_path: Path) -> None:
    pairs = list(Scenes())
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES[::-1], "ids": {"0": 2, "1": 1, "2": 0}}))
    for name, given, options, classes in (
        ("file", Scenes(), {"classes": tmp_path / "classes.json"}, NAMES[::-1]),
        ("values", pairs, {}, ("class 0", "class 1", "class 2")),
    ):
        beitkit.segment(given, out=tmp_path / name, **SHORT | options | {"steps": 1})
        model = beitkit.load(tmp_path / name)
        assert isinstance(model, beitkit.Segmenter)
        assert model.config.classes == classes
    # Without names, values mean what they meant to the run.
    assert _measures(pairs, here) == _measures(table, here)
    with pytest.raises(UserError, match="has the classes sky, disk, ground and .*here knows ground, disk, sky; they must be"):
        beitkit.evaluate(pairs, model=here, classes=tmp_path / "classes.json", **MACHINE)


def _measures(images: Any, model: Path) -> list[tuple[str, float]]:
    return [(one.name, one.value) for one in beitkit.evaluate(images, model=model, **MACHINE).models[0].scores.measures]


def test_a_cut_run_continues_to_the_same_weights_and_refuses_other_scenes(here: Path, tmp_path: Path) -> None:
    class Pulled(Scenes):
        def __getitem__(self, index: int) -> Any:
            if (tmp_path / "cut" / "checkpoints").is_dir() and any((tmp_path / "cut" / "checkpoints").glob("step-00000002*")):
                raise KeyboardInterrupt
            return super().__getitem__(index)

    class Relabeled(Scenes):
        def __getitem__(self, index: int) -> Any:
            image, label_map = super().__getitem__(index)
            return image, Image.fromarray(np.asarray(label_map)[:, ::-1])

    for other in (Pulled, Relabeled):
        other.__qualname__ = Scenes.__qualname__
    options = SHORT | {"out": tmp_path / "cut", "loop": LoopConfig(save_every=1)}
    with pytest.raises(KeyboardInterrupt):
        beitkit.segment(Pulled(), **options)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    with pytest.raises(UserError, match="the images changed since the run in"):
        beitkit.segment(Relabeled(), **options)
    with pytest.raises(UserError, match="images was .*10 images>' and is now .*9 images>'.*was begun in Python"):
        beitkit.segment(Scenes(0, 9), **options)
    beitkit.segment(Scenes(), **options)
    first, second = (load_file(run / "model.safetensors") for run in (here, tmp_path / "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def changed(label_map: Any, at: int = 7) -> list[Any]:
    """The scenes, with something else in the place of one label map."""
    return [(image, label_map(labels) if index == at else labels) for index, (image, labels) in enumerate(map(scene, range(10)))]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return map(scene, range(10))


@pytest.mark.parametrize(
    ("images", "options", "told"),
    [
        (changed(lambda labels: None), {}, r"item 7 has no label map; expected a pair \(image, label_map\)"),
        ([image for image, _ in map(scene, range(10))], {}, "item 0 has no label map"),
        ([{"image": image} for image, _ in map(scene, range(10))], {}, "item 0 has no label map"),
        ([(image, 1) for image, _ in map(scene, range(10))], {}, "item 0 has a int for .*; labels are for classification"),
        (changed(lambda labels: labels[:, :-1]), {}, r"item 7: has \d+x\d+ pixels, but its image .*; a mask must be as large"),
        (changed(lambda labels: labels / 2), {}, r"item 7 has an array of shape .* and type float64 for a label map; expected"),
        (changed(lambda labels: torch.tensor(labels).half()), {}, "item 7 has a tensor of shape .* and type torch.float16 for a"),
        (changed(lambda labels: labels[None]), {}, r"item 7 has an array of shape \(1, .*whole numbers \(h, w\) from 0 to 65535"),
        (changed(lambda labels: labels.astype(int) - 1), {}, "item 7 has an array with values from -1 to 254 for a label map"),
        (changed(lambda labels: Image.new("F", labels.shape[::-1])), {}, "item 7 has a Pillow image of mode F for a label map"),
        (changed(lambda labels: labels + 3), {"classes": "classes.json"}, "item 7: has the value 3, .*; classes.json has 3 cl"),
        (Stream(), {}, "Stream has no length: .*all else needs a dataset with `__len__`"),
        ([(image, labels * 0) for image, labels in map(scene, range(10))], {}, r"only the value \[0\]; write a classes.json for"),
    ],
)  # fmt: skip
def test_wrong_scenes_are_refused_in_one_line_before_anything_is_written(
    images: Any, options: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("classes.json").write_text(json.dumps({"names": NAMES}))
    with pytest.raises(UserError, match=told) as error:
        beitkit.segment(images, out="run", **SHORT | options)
    assert "\n" not in str(error.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("names", "val", "told"),
    [
        (("ground", "disk"), None, r"item 0: has the value 2; `classes` of <python: .*> has 2 classes with values from 0 to 1"),
        (("ground",), None, "`classes` of <python: .*> lists 1 classes; there must be 2 to"),
        (("a", "a", "b"), None, "`classes` of <python: .*> lists 'a' twice"),
        (NAMES[::-1], Scenes(20, 4), "`val` .* has the classes ground, disk, sky and the training images sky, disk, ground"),
    ],
)
def test_wrong_classes_are_refused(names: tuple[str, ...], val: Any, told: str, tmp_path: Path) -> None:
    given = Scenes()
    given.classes = names  # type: ignore[misc]
    with pytest.raises(UserError, match=told):
        beitkit.segment(given, val=val, out=tmp_path / "run", **SHORT)


def test_the_same_dataset_twice_is_refused(tmp_path: Path) -> None:
    given = Scenes()
    with pytest.raises(UserError, match="is given for training and for validation; give two datasets"):
        beitkit.segment(given, val=given, out=tmp_path / "run", **SHORT)
