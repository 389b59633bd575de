"""`beitkit segment` through the command line on drawn scenes: it learns, continues bit for bit, leaves a complete folder."""

from __future__ import annotations

import json
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import beitkit
from beitkit.cli import main
from beitkit.configs.codec import from_json
from beitkit.data.scenes.scenes import find_scenes
from beitkit.errors import Interrupted
from beitkit.runs.segment import run as segment
from beitkit.runs.segment.config import SegmentRun
from beitkit.train import loop as loops

NAMES = ("ground", "disk", "box")
MACHINE = ["--device", "cpu", "--precision", "float32", "--threads", "1", "--workers", "0"]
SCRATCH = ["--scratch", "--size", "nano", "--patch", "8"]
SHORT = ["--steps", "2", "--batch-size", "2", "--image-size", "32"]


def draw_scene(path: Path, number: int) -> None:
    """A green disk and a red box on blue, between 48 and 64 pixels, and the mask that names them."""
    chance = random.Random(number)
    size = chance.randrange(48, 65), chance.randrange(48, 65)
    image, mask = Image.new("RGB", size, (20, 30, 150)), Image.new("L", size, 0)
    for label, color in ((1, (30, 200, 40)), (2, (220, 40, 30))):
        left, top, side = chance.randrange(size[0] - 24), chance.randrange(size[1] - 24), chance.randrange(16, 25)
        for canvas, fill in ((image, color), (mask, label)):
            draw = ImageDraw.Draw(canvas)
            (draw.ellipse if label == 1 else draw.rectangle)((left, top, left + side, top + side), fill=fill)
    for part, canvas in (("images", image), ("masks", mask)):
        (path / part).mkdir(parents=True, exist_ok=True)
        canvas.save(path / part / f"{number:02d}.png")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    for number in range(24):
        draw_scene(folder, number)
    (folder / "classes.json").write_text(json.dumps({"names": NAMES, "colors": [[20, 30, 150], [30, 200, 40], [220, 40, 30]]}))
    return folder


@pytest.fixture(scope="module")
def pretrained(scenes: Path) -> Path:
    """A network that has seen the scenes for a few steps, without labels."""
    out = scenes.parent / "pre"
    run("pretrain", scenes / "images", "--target", "pixels", "--size", "nano", "--patch", "8", "--image-size", "32",
        "--steps", "2", "--batch-size", "4", "--out", out, *MACHINE)  # fmt: skip
    return out


def run(*words: object) -> None:
    """A command line that succeeds."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 0


def segmented(scenes: Path, out: Path, *words: object) -> Path:
    run("segment", scenes, "--out", out, *MACHINE, *words)
    return out


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def loaded(folder: Path) -> beitkit.Segmenter:
    model = beitkit.load(folder)
    assert isinstance(model, beitkit.Segmenter)
    return model


@pytest.fixture(scope="module")
def learned(scenes: Path) -> Path:
    """A nano network from scratch that is trained until it knows the colors."""
    options = ["--image-size", "48", "--steps", "80", "--batch-size", "4", "--loop.evaluate-every", "20"]
    return segmented(scenes, scenes.parent / "learned", *SCRATCH, *options)


def test_it_learns_from_scratch(learned: Path) -> None:
    found = result(learned)
    assert found["miou"] > 0.8
    assert found["aacc"] > 0.9
    assert set(found["class_iou"]) == set(NAMES)
    assert found["miou"] == pytest.approx(sum(found["class_iou"].values()) / 3)
    assert (found["images"], found["scratch"]) == (5, True)


def test_the_folder_is_complete_and_reads_back_as_the_same_scenes(learned: Path, scenes: Path) -> None:
    train, val = (find_scenes(learned / "scenes.csv", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (19, 5)
    assert {path.name for part in (train, val) for path in map(part.files.path, range(len(part)))} == {
        path.name for path in (scenes / "images").iterdir()
    }
    assert train.code == find_scenes(scenes).code
    model = loaded(learned)
    assert model.config.classes == NAMES
    assert model.config.palette == ((20, 30, 150), (30, 200, 40), (220, 40, 30))
    stored = json.loads((learned / "config.json").read_text())
    assert stored.pop("verb") == "segment"
    config = from_json(SegmentRun, stored)
    assert (config.image_size, config.train.lr, config.optim.layer_decay) == (48, 2.8e-3, 1.0)
    assert loaded(learned / "checkpoints" / "best").config == model.config


def test_the_report_has_its_sections_and_images(learned: Path) -> None:
    report = (learned / "report.html").read_text()
    for section in (
        "Is this normal?",
        "Classes",
        "What is taken for what",
        "Worst images first",
        "Learning",
        "The training masks",
    ):
        assert section in report, section
    assert report.count("data:image/png") >= 5  # the legend, and image, truth, prediction and error
    assert "disk" in report


def test_the_same_command_again_finds_it_finished(learned: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (learned / "model.safetensors").stat().st_mtime_ns
    options = ["--image-size", "48", "--steps", "80", "--batch-size", "4", "--loop.evaluate-every", "20"]
    segmented(scenes, learned, *SCRATCH, *options)
    assert "finished" in capsys.readouterr().err
    assert (learned / "model.safetensors").stat().st_mtime_ns == before


def test_a_pretrained_start_keeps_the_backbone_and_says_so(
    scenes: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = segmented(scenes, tmp_path / "seg", "--model", pretrained, *SHORT)
    said = capsys.readouterr().err
    assert f"segmentation from {pretrained}" in said
    assert "--optim.layer-decay 0.8: pre-trained, 4 blocks" in said
    assert result(folder)["scratch"] is False
    # Two steps move the weights by little: what was handed over is still there.
    before = beitkit.load(pretrained, task="segment", classes=NAMES).state_dict()
    after = loaded(folder).state_dict()
    name = next(key for key in after if key.startswith("backbone.") and after[key].dim() == 4)  # the patch embedding
    assert torch.allclose(after[name], before[name], atol=0.02)
    assert not torch.equal(after[name], before[name])


def test_a_frozen_linear_head_leaves_the_features_as_they_were(scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    folder = segmented(scenes, tmp_path / "seg", "--model", pretrained, "--freeze", "--head", "linear", *SHORT)
    model = loaded(folder)
    assert model.config.head == "linear"
    assert model.config.auxiliary_channels is None
    before = beitkit.load(pretrained, task="segment", classes=NAMES, image_size=32)
    for name, tensor in before.backbone.state_dict().items():
        assert torch.equal(tensor, model.backbone.state_dict()[name]), name
    assert "frozen" in (folder / "report.html").read_text()


def test_the_paper_s_head_trains(scenes: Path, tmp_path: Path) -> None:
    folder = segmented(scenes, tmp_path / "seg", *SCRATCH, "--head", "setr_pup", "--channels", "8", *SHORT)
    model = loaded(folder)
    assert (model.config.head, model.config.channels, model.pyramid) == ("setr_pup", 8, None)


def test_two_runs_are_set_side_by_side(
    learned: Path, scenes: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = segmented(scenes, tmp_path / "seg", "--model", pretrained, "--compare", learned, *SHORT)
    report = (folder / "report.html").read_text()
    here, there = result(folder)["miou"], result(learned)["miou"]
    assert f"mIoU {here:.1%} here, {there:.1%} in {learned}" in report
    printed = capsys.readouterr()
    assert re.search(rf"mIoU +{here:.1%} +{there:.1%} +{100 * (here - there):+.1f}", printed.out)
    assert all(f"IoU of {name}" in printed.out and f"IoU of {name}" in report for name in result(folder)["class_iou"])
    for warning in re.findall(r'class="warn">(?:<[^>]*>)*([A-Z][^<]{20})', report):
        assert warning.lower() in printed.err.lower()


@pytest.mark.parametrize("options", [[], ["--head", "linear"], ["--loop.accumulate", "2"]], ids=["uper", "linear", "accumulated"])
def test_a_cut_run_ends_bit_for_bit_as_an_unbroken_one(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    command = [*SCRATCH, "--image-size", "32", "--drop-path", "0.2", "--steps", "5", "--batch-size", "2",
               "--loop.save-every", "2", *options]  # fmt: skip
    whole = segmented(scenes, tmp_path / "whole", *command)
    save = loops.Checkpoints.save

    def cut(self: loops.Checkpoints, step: int, *state: dict, **rest: bool) -> None:
        save(self, step, *state, **rest)
        if step == 2:
            raise Interrupted(2, 5, 2)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Checkpoints, "save", cut)
        with pytest.raises(SystemExit) as stopped:
            main(["segment", str(scenes), "--out", str(tmp_path / "cut"), *MACHINE, *command])
        assert stopped.value.code != 0
    continued = segmented(scenes, tmp_path / "cut", *command)
    assert (continued / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert result(continued)["miou"] == result(whole)["miou"]


def test_a_segmentation_run_is_a_start_for_another_one(learned: Path, scenes: Path, tmp_path: Path) -> None:
    """The head is kept where it is the same, so that one step later the network is still as good."""
    options = ["--steps", "1", "--batch-size", "2", "--lr", "1e-6", "--image-size", "48"]
    kept = segmented(scenes, tmp_path / "kept", "--model", learned, *options)
    assert result(kept)["miou"] == pytest.approx(result(learned)["miou"], abs=0.05)
    other = segmented(scenes, tmp_path / "other", "--model", learned, "--head", "linear", *options)
    assert result(other)["miou"] < 0.5


def write_mask(path: Path, rows: np.ndarray) -> None:
    Image.fromarray(rows).save(path)


def another_size(folder: Path) -> None:
    write_mask(folder / "masks" / "03.png", np.zeros((20, 20), dtype=np.uint8))


def out_of_range(folder: Path) -> None:
    set_pixel(folder, 7)


def ignored_but_not_declared(folder: Path) -> None:
    classes = json.loads((folder / "classes.json").read_text())
    (folder / "classes.json").write_text(json.dumps({**classes, "ignore": []}))
    set_pixel(folder, 255)


def set_pixel(folder: Path, value: int) -> None:
    pixels = np.array(Image.open(folder / "masks" / "03.png"))
    pixels[0, 0] = value
    write_mask(folder / "masks" / "03.png", pixels)


def colors_without_table(folder: Path) -> None:
    (folder / "classes.json").unlink()
    for path in (folder / "masks").iterdir():
        write_mask(path, np.stack([np.array(Image.open(path)) * 90] * 3, axis=-1))


def smoothed(folder: Path) -> None:
    (folder / "classes.json").unlink()
    for path in (folder / "masks").iterdir():
        with Image.open(path) as mask:
            larger = mask.point(lambda label: 100 * label)
        larger.resize((20, 20), Image.Resampling.BILINEAR).resize(mask.size, Image.Resampling.BILINEAR).save(path)


def other_names(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        path.rename(path.with_name(f"x{path.name}"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_size, r"03.png: has 20x20 pixels, but its image 03.png \d+x\d+"),
        (out_of_range, "03.png: has the value 7; .*classes.json has 3 classes"),
        (ignored_but_not_declared, "03.png: has the value 255, but .* nothing is ignored; add 255 to ignore"),
        (colors_without_table, r"holds colors .* nothing says which class each is; write .*classes.json"),
        (smoothed, r"hold \d+ values, \d+ of them rare and along edges only .* or give --all-values if each is one"),
        (other_names, "only 0 of 6 masks in .* have an image of the same name"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_in_one_line(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    for number in range(6):
        draw_scene(tmp_path / "scenes", number)
    shutil.copy(scenes / "classes.json", tmp_path / "scenes")
    spoil(tmp_path / "scenes")
    refused([str(tmp_path / "scenes"), *SCRATCH, *SHORT], tmp_path / "run", message, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze", *SCRATCH], "--freeze keeps the features of --model; with --scratch"),
        ([], "nothing says which network to train; give --model, or --scratch with --size"),
        (["--head", "linear", "--channels", "8", *SCRATCH], "a linear head has no channels of its own, got 8"),
        (["--image-size", "16", *SCRATCH], "a grid of at least 4x4 patches, got 2x2; choose a larger --image-size"),
        (["--image-size", "36", *SCRATCH], "image size 36x36 is not a whole number of 8x8 patches; the nearest that is: 32x32"),
        (["--drop-path", "1.3", *SCRATCH], r"--drop-path must lie in \[0, 1\), got 1.3"),
        (["--model", "nowhere"], "nowhere does not exist; give a run folder or a checkpoint"),
        (["--compare", "nowhere", *SCRATCH], "nowhere holds no finished segmentation run"),
        (["--head", "upr", *SCRATCH], r"--head expects one of linear, setr_pup, uper, got 'upr'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    refused([str(scenes), *options], tmp_path / "run", message, capsys)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([str(tmp_path / "nowhere"), *SCRATCH], tmp_path / "run", "nowhere does not exist; give a folder with images/", capsys)


def refused(words: list[str], out: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["segment", *words, "--out", str(out), *MACHINE])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert re.search(message, said), said
    assert not out.exists()


def test_rare_classes_can_count_more_and_a_class_never_found_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dotted = tmp_path / "dotted"
    for number in range(8):
        draw_scene(dotted, number)
        with Image.open(dotted / "masks" / f"{number:02d}.png") as mask:
            pixels = np.array(mask)
        pixels[number, number] = 3  # one pixel an image
        write_mask(dotted / "masks" / f"{number:02d}.png", pixels)
    options = [*SCRATCH, *SHORT, "--steps", "20"]
    plain = segmented(dotted, tmp_path / "plain", *options)
    said = capsys.readouterr()
    assert result(plain)["class_iou"]["class 3"] == 0
    for text in (said.out + said.err, (plain / "report.html").read_text()):
        assert "never found: " in text.lower()
        assert "make them count more" in text
    weighed = ["--loss.class-weights", "balanced", "--loss.dice-weight", "1"]
    found = segmented(dotted, tmp_path / "weighed", *options, *weighed)
    events = [json.loads(line) for line in (found / "journal.jsonl").read_text().splitlines()]
    assert any(0 < event.get("dice", 0) < 1 for event in events)
    assert "make them count more" not in (found / "report.html").read_text()


def test_it_trains_on_an_archive_and_evaluate_finds_the_part_set_aside(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "scenes.tar", "w") as archive:
        for part in ("images", "masks"):
            archive.add(scenes / part, part)
    shutil.copy(scenes / "classes.json", tmp_path)
    packed = segmented(tmp_path / "scenes.tar", tmp_path / "packed", *SCRATCH, *SHORT)
    assert result(packed)["images"] == 5
    capsys.readouterr()
    run("evaluate", tmp_path / "scenes.tar", "--model", packed, *MACHINE[:-2])
    assert "set aside for validation" in capsys.readouterr().out


def test_python_takes_the_same_options(learned: Path, scenes: Path, tmp_path: Path) -> None:
    options = {"scratch": True, "size": "nano", "patch": 8, "steps": 1, "batch_size": 2, "image_size": 32}
    found = beitkit.segment(scenes, out=tmp_path / "run", device="cpu", threads=1, workers=0, **options)
    assert isinstance(found, segment.SegmentResult)
    assert found == segment.result_of(tmp_path / "run", result(learned)["val_digest"])
