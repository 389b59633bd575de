"""Runs with images, a tokenizer and an augmentation that a caller gives as objects: as with files, exact when continued."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset

import beitkit
from beitkit.configs.model import BackboneConfig, SegmenterConfig
from beitkit.configs.train import LoopConfig
from beitkit.errors import UserError
from beitkit.evaluation.comparison import Evaluation

MACHINE: dict[str, Any] = {"threads": 1, "device": "cpu", "workers": 0, "precision": "float32"}
SMALL: dict[str, Any] = {"size": "nano", "image_size": 32, "patch": 8, "steps": 6, "batch_size": 4} | MACHINE
PIXELS = SMALL | {"target": "pixels"}


def image(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (40, 36, 3), dtype=np.uint8)


IMAGES = [image(index) for index in range(12)]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def brightness(images: Tensor) -> Tensor:
    """16 ids by the brightness of an 8x8 patch."""
    return (images.mean(1).unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).mean((2, 4)) * 16).long().clamp(0, 15)


brightness.vocabulary = 16  # type: ignore[attr-defined]


class Turned:
    """Turns by a random angle; raises after some calls, as if the process had been ended there."""

    fingerprint = "turned by up to 90 degrees"

    def __init__(self, calls: int | None = None) -> None:
        self.calls = calls

    def __call__(self, given: Image.Image) -> Image.Image:
        if self.calls is not None:
            self.calls -= 1
            if self.calls < 0:
                raise RuntimeError("the plug was pulled")
        return given.rotate(np.random.randint(0, 90))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[np.ndarray]:
        return map(image, range(10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate(IMAGES):
        path = root / ("cat", "dog")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def in_order_of(folder: Path) -> list[tuple[np.ndarray, str]]:
    return [(np.asarray(Image.open(path)), path.parent.name) for path in sorted(folder.rglob("*.png"))]


def test_a_dataset_trains_the_network_that_a_folder_trains(folder: Path, tmp_path: Path) -> None:
    kmeans = {"kmeans": {"vocabulary": 8, "patches": 64, "iterations": 2}, "image_size": 32}
    for name, given in (("folder", folder), ("python", in_order_of(folder))):
        beitkit.tokenizer(given, kind="kmeans", out=tmp_path / name / "tok", **kmeans, threads=1, device="cpu", workers=0)
        beitkit.pretrain(given, tokenizer=tmp_path / name / "tok", out=tmp_path / name / "pre", **SMALL)
    for kind in ("tok", "pre"):
        assert_same(tmp_path / "folder" / kind, tmp_path / "python" / kind)


def test_finetune_and_probe_take_pairs_and_validation_images(folder: Path, tmp_path: Path) -> None:
    val = [(pixels[:, ::-1], label) for pixels, label in in_order_of(folder)]
    for pixels, label in val:
        path = tmp_path / "val" / label / f"{len(list(tmp_path.rglob('*.png'))):02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    pre = beitkit.pretrain(IMAGES, out=tmp_path / "pre", **PIXELS)
    options = {"model": pre, "steps": 4, "batch_size": 4} | MACHINE
    there = beitkit.finetune(folder, val=tmp_path / "val", out=tmp_path / "there", **options)
    here = beitkit.finetune(in_order_of(folder), val=val, out=tmp_path / "here", **options)
    assert here.accuracy == there.accuracy
    assert_same(tmp_path / "here", tmp_path / "there")
    assert "class, length and 12 items are compared" in (tmp_path / "here" / "report.html").read_text()
    assert (
        beitkit.probe(in_order_of(folder), val=val, model=pre, device="cpu", workers=0).linear
        == beitkit.probe(folder, val=tmp_path / "val", model=pre, device="cpu", workers=0).linear
    )
    folds = beitkit.finetune(in_order_of(folder), folds=2, out=tmp_path / "folds", **options)
    assert len(folds.measures[0].values) == 2


def _measured(result: Evaluation) -> dict[str, float]:
    return {measure.name: measure.value for measure in result.models[0].scores.measures}


def test_evaluate_predict_and_embed_take_what_was_trained_on(folder: Path, tmp_path: Path) -> None:
    pairs, machine = in_order_of(folder), {"device": "cpu", "threads": 1, "workers": 0}
    cls = tmp_path / "cls"
    beitkit.finetune(pairs, size="nano", image_size=32, patch=8, steps=4, batch_size=4, scratch=True, out=cls, **MACHINE)
    aside = beitkit.evaluate(pairs, model=cls, out=tmp_path / "evaluation", **machine)
    table = (cls / "split.csv").read_text().splitlines()
    assert aside.images == sum(line.endswith('"val"') for line in table) == 2
    assert aside.where == "the part of <python: list, 12 images> that was set aside for validation"
    there = beitkit.evaluate(folder, model=cls, **machine)
    other = beitkit.evaluate(pairs[::-1], model=cls, **machine)  # of the same class and length
    assert (other.images, other.where) == (12, "<python: list, 12 images>")
    assert _measured(other) == pytest.approx(_measured(there), nan_ok=True)

    paths = sorted(folder.rglob("*.png"))
    for name, given in (("there", paths), ("here", pairs)):
        given_as = iter(paths) if name == "there" else pairs  # as `Path.rglob` gives them
        beitkit.predict(given_as, model=cls, out=tmp_path / f"{name}.csv", batch_size=4, **machine)
        beitkit.embed(given, model=cls, out=tmp_path / f"{name}.npy", batch_size=4, **machine)
    rows = {name: (tmp_path / f"{name}.csv").read_text().splitlines()[1:] for name in ("there", "here")}
    assert [row.split(",")[1:] for row in rows["there"]] == [row.rpartition('"')[2].split(",")[1:] for row in rows["here"]]
    assert rows["here"][3].startswith('"<python: list, 12 images>: item 3",')
    np.testing.assert_array_equal(np.load(tmp_path / "here.npy"), np.load(tmp_path / "there.npy"))
    with pytest.raises(UserError, match="holds the result of another command .*inputs was"):
        beitkit.predict(pairs[::-1], model=cls, out=tmp_path / "here.csv", batch_size=4, **machine)
    for shard in (None, "1/2", "2/2"):  # of 16 images
        beitkit.embed(IMAGES * 2, model=cls, out=tmp_path / "part.npy", batch_size=1, shard=shard, **machine)
    parts = [np.load(tmp_path / f"part-0000{number}-of-00002.npy") for number in (1, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), np.load(tmp_path / "part.npy"))


def test_items_are_predicted_with_a_name_each_and_broken_ones_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Holed:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> np.ndarray:
            if index == 3:
                raise OSError("the disk has a hole")
            return IMAGES[index]

    torch.manual_seed(0)
    backbone = BackboneConfig(width=24, depth=4, heads=4, hidden=48, image_size=(32, 32), patch=(8, 8), final_norm=False)
    beitkit.save(beitkit.Segmenter(SegmenterConfig(backbone=backbone, classes=("a", "b"), channels=8)), tmp_path / "seg")
    beitkit.predict(Holed(), model=tmp_path / "seg", out=tmp_path / "masks", device="cpu", threads=1)
    assert "Holed, 12 images>: item 3: OSError: the disk has a hole" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "masks" / "index").iterdir())
    assert names == [f"{index:02d}.png" for index in range(12) if index != 3]
    beitkit.predict(Holed(), model=tmp_path / "seg", device="cpu", threads=1)
    assert "Next: beitkit predict IMAGES --out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"Holed, 12 images>: item 0 has no label map; expected a pair \(image, label_map\)"):
        beitkit.evaluate(Holed(), model=tmp_path / "seg")
    with pytest.raises(UserError, match=r"`engine='ray'` opens images by their paths, but <python: .*Holed, 12 images> is an"):
        beitkit.embed(Holed(), model=tmp_path / "seg", out=tmp_path / "ray.npy", engine="ray")
    with pytest.raises(UserError, match="Stream has no length"):
        beitkit.embed(Stream(), model=tmp_path / "seg", out=tmp_path / "stream.npy")
    with pytest.raises(UserError, match="map has no length"):
        beitkit.embed(map(image, range(2)), model=tmp_path / "seg", out=tmp_path / "stream.npy")


def test_a_callable_trains_what_the_tokenizer_trains_that_it_calls(folder: Path, tmp_path: Path) -> None:
    path = beitkit.tokenizer(
        folder, kind="kmeans", kmeans={"vocabulary": 8, "patches": 64, "iterations": 2}, image_size=32, out=tmp_path / "tok", **{
            name: value for name, value in MACHINE.items() if name != "precision"
        }
    )  # fmt: skip
    beitkit.pretrain(folder, tokenizer=path, out=tmp_path / "there", **SMALL)

    class Own(nn.Module):
        vocabulary, stride = 8, 8

        def __init__(self) -> None:
            super().__init__()
            self.inner = beitkit.load_tokenizer(path)

        def forward(self, images: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            assert (images.dtype, images.min() >= 0, images.max() <= 1) == (torch.float32, True, True)
            return self.inner.encode(images).flatten(1).int()

    beitkit.pretrain(folder, tokenizer=Own(), out=tmp_path / "here", **SMALL)
    assert_same(tmp_path / "here", tmp_path / "there")
    assert "Own tokenizer" in (tmp_path / "here" / "report.html").read_text()


@pytest.mark.parametrize("given", [IMAGES, Stream()], ids=["dataset", "stream"])
def test_a_run_that_was_cut_ends_where_an_unbroken_one_does(given: Any, tmp_path: Path) -> None:
    options = PIXELS | {"loop": LoopConfig(save_every=1)}
    beitkit.pretrain(given, augmentation=Turned(), out=tmp_path / "whole", **options)
    with pytest.raises(UserError, match="the augmentation .*Turned> raised RuntimeError: the plug was pulled on "):
        beitkit.pretrain(given, augmentation=Turned(calls=14), out=tmp_path / "cut", **options)
    assert any((tmp_path / "cut" / "checkpoints").glob("step-*.json"))
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    beitkit.pretrain(given, augmentation=Turned(), out=tmp_path / "cut", **options | {"workers": 2})
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_an_augmentation_comes_before_the_views_and_not_into_evaluations(tmp_path: Path) -> None:
    """Black images have nothing to predict: their pixels are all the mean, but those of the evaluation are as they were."""

    def black(given: Image.Image) -> Image.Image:
        assert (given.mode, given.size) in (("RGB", (36, 40)), ("RGB", (512, 512)))
        given.paste((0, 0, 0), (0, 0, *given.size))
        return given

    beitkit.pretrain(IMAGES, augmentation=black, out=tmp_path / "run", **PIXELS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert max(line["fixed/variance"] for line in lines if "fixed/variance" in line) > 0.1
    preview = np.asarray(Image.open(tmp_path / "run" / "reconstructions.png").convert("L"))
    assert (preview[: preview.shape[0] // 16, : preview.shape[1] // 8] < 40).any()


def test_arrays_of_floats_are_augmented_as_floats(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    def halved(given: np.ndarray) -> np.ndarray:
        seen.append((given.dtype, given.shape[2], float(given.min()) >= 0, float(given.max()) <= 1))
        return given / 2

    deep = [np.random.default_rng(index).random((32, 32, 5), dtype=np.float32) * 4000 for index in range(8)]
    beitkit.pretrain(deep, augmentation=halved, value_range=(0.0, 4000.0), out=tmp_path / "run", **PIXELS)
    assert set(seen) == {(np.dtype("float32"), 5, True, True)}


def test_a_continued_run_refuses_other_parts_and_the_command_line(tmp_path: Path) -> None:
    options = SMALL | {"out": tmp_path / "run", "tokenizer": brightness, "augmentation": Turned()}
    beitkit.pretrain(IMAGES, **options)
    assert "Own augmentation" in (tmp_path / "run" / "report.html").read_text()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["images"] == "<python: list, 12 images>"
    assert stored["tokenizer"].endswith("brightness>")
    assert stored["augmentation"].endswith("Turned>")
    (tmp_path / "run" / "model.json").unlink()  # as if it had been cut before the end

    def refused(changed: dict[str, Any], told: str, images: Any = IMAGES) -> None:
        with pytest.raises(UserError, match=told) as error:
            beitkit.pretrain(images, **options | changed)
        assert "\n" not in str(error.value)

    class Other(Turned):
        pass

    class Stronger(Turned):
        fingerprint = "turned by up to 180 degrees"

    Stronger.__qualname__, Stronger.__module__ = Turned.__qualname__, Turned.__module__

    def renamed(images: Tensor) -> Tensor:
        return 15 - brightness(images)

    renamed.vocabulary = 16  # type: ignore[attr-defined]
    renamed.__qualname__ = "brightness"
    refused(
        {},
        "`out` .*images was .*12 images>' and is now .*11 images>'.*was begun in Python",
        IMAGES[1:],
    )
    refused({}, "the images changed since the run", IMAGES[::-1])
    refused({"tokenizer": renamed}, "the tokenizer changed since the run")
    refused({"augmentation": Stronger()}, "the augmentation changed since the run")
    refused({"augmentation": Other()}, "augmentation was .*Turned>' and is now .*Other>'")
    refused({"augmentation": None}, "augmentation was .*Turned>' and is now None")
    command = [sys.executable, "-m", "beitkit", "pretrain", "--config", str(tmp_path / "run" / "config.json")]
    done = subprocess.run([*command, "--out", str(tmp_path / "again")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is an object that a Python program gave" in done.stderr
    with pytest.raises(UserError, match="<python: .*Turned> is an object that a Python program gave"):
        beitkit.pretrain(**stored | {"images": IMAGES, "tokenizer": brightness, "out": tmp_path / "again"})


def with_vocabulary(function: Callable[..., Any], vocabulary: Any = 16) -> Callable[..., Any]:
    def own(images: Tensor) -> Any:
        return function(images)

    own.vocabulary = vocabulary  # type: ignore[attr-defined]
    return own


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"tokenizer": lambda images: images}, "has no `vocabulary`; give it one, the number of its ids"),
        ({"tokenizer": with_vocabulary(brightness, 0)}, "has `vocabulary` 0; give it one"),
        ({"tokenizer": 3}, "`tokenizer` is a int; expected a path or something that can be called"),
        ({"tokenizer": with_vocabulary(lambda images: images)}, r"returned float32 \(4, 3, 32, 32\) for 32x32 pixels"),
        ({"tokenizer": with_vocabulary(lambda images: brightness(images)[:, 1:])}, r"returned int64 \(4, 3, 4\)"),
        ({"tokenizer": with_vocabulary(lambda images: brightness(images).tolist())}, r"a list; .*\(4, 4, 4\) or \(4, 16\)"),
        ({"tokenizer": with_vocabulary(lambda images: brightness(images) - 9)}, "ids from -[0-9] to -[0-9]; its `vocabulary`"),
        ({"tokenizer": with_vocabulary(brightness, 4)}, "its `vocabulary` is 4, so they must lie in 0 to 3"),
        ({"augmentation": lambda given: None}, "returned a NoneType for probe 0; expected a Pillow image"),
        ({"augmentation": lambda given: np.zeros((8, 8, 5))}, "returned for probe 0 an image that"),
        ({"augmentation": lambda given: given.nothing}, "raised AttributeError: .* on probe 0"),
        ({"augmentation": "flip"}, "`augmentation` is from Python only"),
        ({"views": 2}, "`views` keeps the tokens of files' views, and `images` is a Python object"),
        ({"images": Stream(), "steps": None}, "Stream has no length: pre-training takes it with `steps`"),
    ],
)  # fmt: skip
def test_wrong_parts_are_refused_in_one_line_before_anything_is_written(tmp_path: Path, parts: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        beitkit.pretrain(**SMALL | {"images": IMAGES, "tokenizer": brightness, "out": tmp_path / "run"} | parts)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_ids_that_leave_the_vocabulary_later_are_told(tmp_path: Path) -> None:
    """The images of noise that a tokenizer is tried on are of middle brightness; a dark training image is not."""
    dark = [np.zeros((40, 36, 3), dtype=np.uint8)] * 12
    own = with_vocabulary(lambda images: brightness(images) - 1)
    with pytest.raises(UserError, match="returned ids from -1 to -1; its `vocabulary` is 16"):
        beitkit.pretrain(dark, tokenizer=own, out=tmp_path / "run", **SMALL)
