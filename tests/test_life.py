"""The life cycle through the command line, on images of shapes: tokenizer, pre-training, probe, fine-tuning, evaluation."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import beitkit
from beitkit.cli import main
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.errors import UserError

SMALL = ["--threads", "1", "--device", "cpu", "--workers", "0"]


def shape(index: int) -> Image.Image:
    image = Image.new("RGB", (32, 32), (20 + index % 7 * 10, 60, 90))
    draw = ImageDraw.Draw(image)
    box = (4 + index % 5, 4 + index % 3, 20 + index % 5, 20 + index % 3)
    (draw.ellipse if index % 2 else draw.rectangle)(box, fill=(240, 200, 40 + index % 4 * 20))
    return image


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the runs made from them."""
    folder = tmp_path_factory.mktemp("life")
    for index in range(120):
        part = "train" if index < 80 else "val"
        path = folder / "images" / part / ("square", "disk")[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape(index).save(path)
    return folder


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), *SMALL])
    assert stopped.value.code == 0


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def check_run_folder(folder: Path, verb: str) -> None:
    assert json.loads((folder / "config.json").read_text())["verb"] == verb
    assert json.loads((folder / "environment.json").read_text())["torch"] == torch.__version__
    assert list((folder / "checkpoints").glob("step-*.json"))
    assert (folder / "model.safetensors").exists()
    html = (folder / "report.html").read_text()
    assert "Is this normal?" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    logged = events(folder)
    assert all(math.isfinite(event["loss"]) for event in logged if event["kind"] == "train")


def test_from_images_to_a_classifier(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok, pre, cls, scratch = (world / name for name in ("tok", "pre", "cls", "scratch"))
    images = world / "images"
    command(
        "tokenizer", images, "--out", tok, "--image-size", 32, "--steps", 60, "--batch-size", 16, "--dvae.vocabulary", 32,
        "--dvae.stride", 4, "--dvae.hidden", 32, "--dvae.codebook-dim", 16,
    )  # fmt: skip
    check_run_folder(tok, "tokenizer")
    tokenizer = beitkit.load_tokenizer(tok)
    noise = torch.rand(2, 3, 32, 24)
    ids = tokenizer.encode(noise)
    assert ids.shape == (2, 8, 6)
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids).shape == noise.shape

    command(
        "pretrain", images, "--tokenizer", tok, "--out", pre, "--size", "nano", "--image-size", 32, "--patch", 4, "--steps", 60,
        "--batch-size", 16, "--lr", 0.003, "--optim.lr-batch", 16, "--loop.log-every", 10,
    )  # fmt: skip
    check_run_folder(pre, "pretrain")
    losses = [event["loss"] for event in events(pre) if event["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.2
    model = beitkit.load(pre)
    assert isinstance(model, beitkit.MaskedImageModel)
    assert model.config.tokenizer == tokenizer.fingerprint
    assert model.config.vocabulary == 32

    command("probe", images, "--model", pre, "--out", world / "probe", "--json")
    probe = json.loads(capsys.readouterr().out)
    assert len(probe["linear"]["test"]) == 4
    assert max(probe["linear"]["test"]) > 0.7
    assert probe == json.loads((world / "probe" / "probe.json").read_text())

    for out, start in ((scratch, ["--scratch"]), (cls, ["--compare", scratch])):
        command(
            "finetune", images, "--model", pre, "--out", out, "--steps", 60, "--batch-size", 16, "--lr", 0.004,
            "--optim.lr-batch", 16, *start,
        )  # fmt: skip
        check_run_folder(out, "finetune")
    assert str(scratch) in (cls / "report.html").read_text()
    top1 = [json.loads((folder / "result.json").read_text())["top1"] for folder in (cls, scratch)]
    assert [f"{top1[0]:.1%}", f"{top1[1]:.1%}", f"{100 * (top1[0] - top1[1]):+.1f}"] == capsys.readouterr().out.split()[-3:]
    command("evaluate", images, "--model", cls, "--json")
    evaluation = json.loads(capsys.readouterr().out)
    result = json.loads((cls / "result.json").read_text())
    assert evaluation["images"] == 40
    assert evaluation["top1"] == pytest.approx(result["top1"])
    assert evaluation["top1"] > 0.8
    assert set(evaluation["classes"]) == {"disk", "square"}
    classifier = beitkit.load(cls)
    assert isinstance(classifier, beitkit.Classifier)
    assert classifier.config.classes == ("disk", "square")


def test_the_verbs_are_functions_with_the_same_fields(world: Path) -> None:
    folder = beitkit.tokenizer(
        world / "images",
        out=world / "by-python",
        image_size=16,
        steps=1,
        batch_size=2,
        dvae=DVAEConfig(vocabulary=8, hidden=16, codebook_dim=16),
    )
    assert (folder / "model.safetensors").exists()
    assert json.loads((folder / "config.json").read_text())["train"]["batch_size"] == 2
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        beitkit.tokenizer(world / "images", out=world / "other", bach_size=2)  # type: ignore[call-arg]


def test_broken_files_are_skipped_listed_and_limited(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(150):
        shape(index).save(images / f"{index:03d}.png")
    (images / "007.png").write_bytes((images / "007.png").read_bytes()[:60])
    options = ["--image-size", 16, "--steps", 10, "--batch-size", 32, "--dvae.vocabulary", 8, "--dvae.stride", 4]
    command("tokenizer", images, "--out", tmp_path / "ok", *options)
    listed = [json.loads(line) for line in (tmp_path / "ok" / "broken_files.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in listed] == ["007.png"]
    for name in ("008.png", "009.png"):
        (images / name).write_bytes(b"not an image")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["tokenizer", str(images), "--out", str(tmp_path / "stopped"), *map(str, options), *SMALL])
    assert stopped.value.code == 2
    assert "of 150 images cannot be read, more than the 1.00% allowed" in capsys.readouterr().err


def test_what_cannot_work_together_is_refused_before_anything_is_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, tok = tmp_path / "out", tmp_path / "tok"
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=8, stride=4, hidden=16, codebook_dim=8)), tok)
    pretrain = ["pretrain", world / "images", "--tokenizer", tok, "--out", out, "--size", "nano", "--patch", 4]
    for options, expected in (
        (["--image-size", 30], "not a whole number of 4x4 patches; the nearest that is: 32x32"),
        (["--image-size", 4], "at least 2x2 are needed"),
        (["--image-size", 8, "--mask.ratio", 0.05], "the nearest ratio is 0.25"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, pretrain), *map(str, options), *SMALL])
        printed = capsys.readouterr().err
        assert stopped.value.code == 2
        assert expected in printed
        assert printed.count("\n") == 1
        assert not out.exists()
