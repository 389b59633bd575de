"""`beitkit evaluate` and `beitkit predict` with segmenters, on generated street scenes."""

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.data import INCEPTION
from beitkit.configs.model import BackboneConfig, SegmenterConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.data.sources.find import find_images
from beitkit.data.sources.index import write_index
from beitkit.errors import UserError
from beitkit.nn.segmentation.label_map import predict_label_map, predict_scene

CLASSES = ("ground", "disk")
PALETTE = ((10, 120, 30), (200, 40, 50))
ALSO = ["--device", "cpu", "--threads", "1", "--precision", "float32"]


def segmenter(seed: int, classes: tuple[str, ...] = CLASSES) -> beitkit.Segmenter:
    torch.manual_seed(seed)
    backbone = BackboneConfig.named("nano/8", image_size=32, relative_positions="per_block", final_norm=False)
    model = beitkit.Segmenter(
        SegmenterConfig(
            backbone=backbone, classes=classes, channels=8, auxiliary_channels=None, palette=PALETTE[: len(classes)],
            preprocessing=INCEPTION,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.decode_head.conv_seg.weight.normal_(std=0.5)
        model.eval()
        half = torch.tensor([-0.6, -0.2, -0.5]).view(1, 3, 1, 1).repeat(1, 1, 32, 32)
        half[:, :, 8:24, :16] = torch.tensor([0.6, -0.4, -0.4]).view(3, 1, 1)
        model.decode_head.conv_seg.bias.sub_(model.coarse_logits(half).mean((0, 2, 3)))  # so that no class is everywhere
    return model


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for index in range(6):
        height, width = 40 + 3 * index, 56
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[5 + index : 20 + index, 10:30] = 1
        mask[0] = 255
        image = np.where(mask[..., None] == 1, [200, 60, 60], [40, 90, 50]) + rng.integers(0, 20, (height, width, 3))
        for name, content in (("images", image.astype(np.uint8)), ("masks", mask)):
            (folder / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(folder / "data" / name / f"{index}.png")
    (folder / "data" / "classes.json").write_text(json.dumps({"names": CLASSES, "ignore": [255]}))
    for seed in range(2):
        beitkit.save(segmenter(seed), folder / f"model-{seed}")
    beitkit.save(segmenter(2, ("ground", "box")), folder / "other")
    return folder


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), *ALSO])
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    return printed.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), *ALSO])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


def brute_force(world: Path, model: beitkit.Segmenter) -> tuple[list[float], float]:
    """IoU of each class and the share of pixels named right, pixel by pixel over all images."""
    intersection, union, right, total = [0, 0], [0, 0], 0, 0
    for index in range(6):
        image = np.asarray(opened(world / "data" / "images" / f"{index}.png"))
        truth = np.asarray(opened(world / "data" / "masks" / f"{index}.png"))
        predicted = predict_label_map(model, torch.from_numpy(image.copy()).permute(2, 0, 1)).numpy()
        counts = truth != 255
        for label in (0, 1):
            intersection[label] += int(((truth == label) & (predicted == label)).sum())
            union[label] += int((((truth == label) | (predicted == label)) & counts).sum())
        right += int((truth == predicted)[counts].sum())
        total += int(counts.sum())
    return [one / other for one, other in zip(intersection, union, strict=True)], right / total


def test_evaluate_equals_brute_force_and_writes_its_files(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    printed = json.loads(command(capsys, "evaluate", world / "data", "--model", world / "model-0", "--out", out, "--json"))
    iou, right = brute_force(world, segmenter(0))
    assert printed["class_iou"] == pytest.approx(dict(zip(CLASSES, iou, strict=True)))
    assert min(iou) > 0
    assert printed["miou"] == pytest.approx(sum(iou) / 2)
    assert printed["aacc"] == pytest.approx(right)
    assert printed == json.loads((out / "evaluation.json").read_text())
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["miou"]) for row in rows]
    assert len(rows) == 6
    assert values == sorted(values)
    html = (out / "report.html").read_text()
    assert "Worst images first" in html
    assert "What is taken for what" in html


def test_models_side_by_side_and_runs_that_differ_by_their_seed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        (world / f"model-{seed}" / "config.json").write_text(json.dumps({"verb": "segment", "train": {"seed": seed}}))
    printed = command(capsys, "evaluate", world / "data", "--model", world / "model-0", world / "model-1")
    assert "differ in nothing but their seed (0, 1): mIoU" in printed
    result = beitkit.evaluate(world / "data", model=[world / "model-0", world / "model-1"], device="cpu", threads=1)
    values = [model.headline for model in result.models]
    assert result.seeds[0].spread.mean == pytest.approx(sum(values) / 2)
    with pytest.raises(UserError, match="2 models were evaluated"):
        _ = result.mean_iou


def test_the_part_that_a_run_set_aside_is_measured(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    beitkit.save(segmenter(0), run)
    run.joinpath("config.json").write_text(json.dumps({"verb": "segment", "images": str(world / "data"), "val": None}))
    rows = [f"{world / 'data' / 'images' / f'{i}.png'},{world / 'data' / 'masks' / f'{i}.png'},val" for i in (1, 4)]
    run.joinpath("scenes.csv").write_text("image,mask,split\n" + "\n".join(rows) + "\n")
    assert "set aside for validation" in command(capsys, "evaluate", world / "data", "--model", run)
    assert beitkit.evaluate(world / "data", model=run, device="cpu", threads=1).images == 2


def test_predict_writes_masks_that_are_read_back(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "masks"
    printed = command(capsys, "predict", world / "data" / "images", "--model", world / "model-0", "--out", out)
    assert "6 images" in printed
    model = beitkit.load(world / "model-0")
    assert isinstance(model, beitkit.Segmenter)
    lines = {Path(line["path"]).stem: line for line in map(json.loads, (out / "areas.jsonl").read_text().splitlines())}
    for index in range(6):
        prediction = model.predict(world / "data" / "images" / f"{index}.png")
        mask = opened(out / "index" / f"{index}.png")
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), prediction.label_map.numpy())
        colors = np.asarray(opened(out / "color" / f"{index}.png"))
        assert np.array_equal(colors, np.array(PALETTE, dtype=np.uint8)[np.asarray(mask)])
        assert opened(out / "overlay" / f"{index}.jpg").size == mask.size
        assert sum(lines[str(index)]["areas"].values()) == pytest.approx(1, abs=1e-4)
        assert lines[str(index)]["areas"] == pytest.approx(prediction.areas, abs=1e-5)
    assert opened(out / "sheet.png").size[0] > 4 * 200
    # What was predicted is a data set again: it agrees with itself.
    again = tmp_path / "again"
    (again / "images").mkdir(parents=True)
    for index in range(6):
        opened(world / "data" / "images" / f"{index}.png").save(again / "images" / f"{index}.png")
    (out / "index").rename(again / "masks")
    (out / "classes.json").rename(again / "classes.json")
    assert beitkit.evaluate(again, model=world / "model-0", device="cpu", threads=1, precision="float32").mean_iou == 1


def packed(world: Path, kind: str, out: Path) -> tuple[Path, Path]:
    """The scenes, and their images alone, in an archive or an index."""
    if kind == "index":
        for name, part in (("scenes", world / "data"), ("images", world / "data" / "images")):
            write_index(out / f"{name}.index", find_images(part))
        return out / "scenes.index", out / "images.index"
    pairs = [[(world / "data" / part / f"{index}.png").read_bytes() for part in ("images", "masks")] for index in range(6)]
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        columns = {
            name: [{"bytes": pair[side], "path": f"{index}.png"} for index, pair in enumerate(pairs)]
            for side, name in enumerate(("image", "annotation"))
        }
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), out / "x.parquet")
        return out / "x.parquet", out / "x.parquet"
    for name, folders in (("scenes", ("images", "masks")), ("only", ("images",))):
        with tarfile.open(out / f"{name}.tar", "w") as archive:
            for folder in folders:
                archive.add(world / "data" / folder, folder)
    return out / "scenes.tar", out / "only.tar"


@pytest.mark.parametrize("kind", ["tar", "parquet", "index"])
def test_archives_and_indexes_give_what_folders_give(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    scenes, images = packed(world, kind, tmp_path)
    model, classes = ["--model", world / "model-0"], world / "data" / "classes.json"
    plain = json.loads(command(capsys, "evaluate", world / "data", *model, "--json"))
    found = json.loads(command(capsys, "evaluate", scenes, *model, "--classes", classes, "--json"))
    assert {key: found[key] for key in ("miou", "aacc", "class_iou", "images")} == {
        key: plain[key] for key in ("miou", "aacc", "class_iou", "images")
    }
    command(capsys, "predict", world / "data" / "images", *model, "--out", tmp_path / "plain")
    command(capsys, "predict", images, *model, "--out", tmp_path / "out")
    for written in sorted((tmp_path / "plain" / "index").iterdir()):
        inside = Path("images", written.name) if kind == "tar" else Path(written.name)
        for part, ending in (("index", ".png"), ("overlay", ".jpg")):
            there = (tmp_path / "plain" / part / written.name).with_suffix(ending)
            assert (tmp_path / "out" / part / inside.with_suffix(ending)).read_bytes() == there.read_bytes()
    assert (tmp_path / "out" / "sheet.png").read_bytes() == (tmp_path / "plain" / "sheet.png").read_bytes()
    assert len(command(capsys, "predict", images, *model, "--json").splitlines()) == 6


def test_names_in_archives_lead_nowhere_else(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (world / "data" / "images" / "0.png").read_bytes()
    for shard in "ab":
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for name in ("../../x.png", "deep/y.png"):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    out = tmp_path / "inner" / "out"
    command(capsys, "predict", tmp_path / "a.tar", tmp_path / "b.tar", "--model", world / "model-0", "--out", out)
    found = sorted(str(path.relative_to(out / "index")) for path in (out / "index").rglob("*.png"))
    assert found == ["a/deep/y.png", "a/x.png", "b/deep/y.png", "b/x.png"]


def test_predict_continues_after_a_kill_and_shards_share_a_folder(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", world / "data" / "images", "--model", world / "model-0", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command(capsys, *arguments, whole)
    command(capsys, *arguments, cut)
    kept = (cut / "areas.jsonl").read_text().splitlines(keepends=True)
    (cut / "areas.jsonl").write_text("".join(kept[:2]) + kept[2][:20])  # killed in the middle of a line
    (cut / "index" / "2.png").unlink()
    untouched = (cut / "index" / "0.png").stat().st_mtime_ns
    command(capsys, *arguments, cut)
    assert (cut / "areas.jsonl").read_bytes() == (whole / "areas.jsonl").read_bytes()
    assert (cut / "index" / "2.png").read_bytes() == (whole / "index" / "2.png").read_bytes()
    assert (cut / "index" / "0.png").stat().st_mtime_ns == untouched
    shards = tmp_path / "shards"
    for number in (1, 2):
        command(capsys, *arguments, shards, "--shard", f"{number}/2")
    lines = [line for number in (1, 2) for line in (shards / f"areas-{number}-of-2.jsonl").read_text().splitlines()]
    assert sorted(lines) == sorted((whole / "areas.jsonl").read_text().splitlines())


def test_predict_prints_without_a_folder_and_passes_over_what_is_broken(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    image = world / "data" / "images" / "3.png"
    printed = command(capsys, "predict", broken, image, "--model", world / "model-0", "--json").splitlines()
    assert len(printed) == 1
    assert json.loads(printed[0])["path"] == str(image)
    assert "none of the 1 images can be read" in main_error(capsys, "predict", broken, "--model", world / "model-0")


def main_error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), *ALSO])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_mistakes_are_refused_in_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = world / "data", world / "model-0"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for arguments, expected in (
        (["evaluate", data, "--model", model, world / "other"], "compare models with the same classes"),
        (["evaluate", data, "--model", world / "other"], "has the classes ground, disk and"),
        (["evaluate", data, "--model", model, "--crop-share", 0.5], "--crop-share is for classifiers"),
        (["evaluate", tmp_path / "none", "--model", model], "does not exist"),
        (["evaluate", data, "--model", model, "--inference.stride", 64], "--inference.stride 64 is larger than"),
        (["predict", data / "images", "--model", model, "--out", tmp_path / "x.csv"], "must be a folder"),
        (["predict", data / "images", "--model", model, "--engine", "ray"], "--engine ray is for classifiers"),
        (["predict", data / "images", "--model", model, "--out", tmp_path / "full"], "is not empty and holds no predictions"),
    ):
        assert expected in refused(capsys, *arguments)
    assert not (tmp_path / "x.csv").exists()
    command(capsys, "predict", data / "images" / "0.png", "--model", model, "--out", tmp_path / "masks")
    assert "predictions of another command" in refused(
        capsys, "predict", data / "images", "--model", model, "--out", tmp_path / "masks"
    )


def test_predict_from_python_takes_arrays_and_other_scales(world: Path) -> None:
    model = beitkit.load(world / "model-1")
    assert isinstance(model, beitkit.Segmenter)
    array = np.asarray(opened(world / "data" / "images" / "2.png"))
    config = InferenceConfig(scales=(1.0, 1.5), flip=True)
    prediction = model.predict(array, inference=config)
    direct = predict_scene(model, torch.from_numpy(array.copy()).permute(2, 0, 1), config)
    assert torch.equal(prediction.label_map, direct.label_map)
    assert prediction.label_map.shape == array.shape[:2]
    assert list(prediction.areas.values()) == sorted(prediction.areas.values(), reverse=True)
    with pytest.raises(UserError, match="load it with beitkit.load"):
        segmenter(0).predict(array)


def test_how_a_network_labels_is_stored_with_it(world: Path, tmp_path: Path) -> None:
    """A number of an evaluation without options is that of the run; options change only what they say."""
    model = segmenter(0)
    model.config = replace(model.config, inference=InferenceConfig(short_side=48, stride=8))
    beitkit.save(model, tmp_path / "own")
    also = {"device": "cpu", "threads": 1, "precision": "float32"}
    own = beitkit.evaluate(world / "data", model=tmp_path / "own", **also)
    wished = InferenceConfig(short_side=48, stride=8)
    said = beitkit.evaluate(world / "data", model=world / "model-0", inference=wished, **also)
    assert own.mean_iou == said.mean_iou
    assert own.mean_iou != beitkit.evaluate(world / "data", model=world / "model-0", **also).mean_iou
    flipped = InferenceConfig(flip=True).over(wished)
    assert flipped == InferenceConfig(short_side=48, stride=8, flip=True)
    assert flipped.words == "slide, short side 48, stride 8, mirrored too"
    loaded = beitkit.load(tmp_path / "own")
    assert isinstance(loaded, beitkit.Segmenter)
    image = world / "data" / "images" / "1.png"
    assert torch.equal(loaded.predict(image).label_map, loaded.predict(image, inference=wished).label_map)
