"""`beitkit show`: one page and its sheets, of every kind of network, of a folder and of one image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.codec import to_json
from beitkit.configs.data import MaskConfig
from beitkit.configs.model import MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.tokenizer import KMeansConfig
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError
from beitkit.interop.formats.native import save_native
from beitkit.nn.models import MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.show.tokens import decoded_codes
from beitkit.tokenizers.kmeans import KMeansTokenizer
from beitkit.train.machine.runtime import start_runtime
from tests.inference.conftest import PRETRAINED, drawn

Command = Callable[..., int]
CODE = 5
CPU: Any = {"device": "cpu", "threads": 1, "precision": "float32"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run `pre` that always names one code, its tokenizer `tok`, and flat images, all of whose patches have this code."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "photos").mkdir()
    for number, name in enumerate("abc"):
        Image.fromarray(np.full((48, 64, 3), 60 * number + 40, dtype=np.uint8)).save(folder / "photos" / f"{name}.png")
    torch.manual_seed(0)
    tokenizer = KMeansTokenizer(KMeansConfig(vocabulary=8, stride=4, margin=0))
    tokenizer.offsets[CODE] = 1.0  # the code of a patch without contrast, whose other scores are 0
    save_native(tokenizer, folder / "tok")
    model = drawn(MaskedImageModel(MaskedImageModelConfig(backbone=PRETRAINED, vocabulary=8, tokenizer=tokenizer.fingerprint)))
    assert isinstance(model, MaskedImageModel)
    for name, code in (("pre", CODE), ("wrong", CODE + 1)):
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.copy_(torch.eye(8)[code])
        save_native(model, folder / name)
        run = PretrainRun(
            folder / "photos", tokenizer=folder / "tok", out=folder / name, mask=MaskConfig(kind="random", ratio=0.5)
        )
        (folder / name / "config.json").write_text(json.dumps({"verb": "pretrain", **to_json(run)}))
    return folder


def test_a_pretraining_run(pretrained: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """With the run's own masks and tokenizer, whose code it always names: everything is right."""
    out = tmp_path / "sheet.html"
    assert command("show", pretrained / "photos", "--model", pretrained / "pre", "--out", out) == 0
    page = out.read_text()
    assert "18 predicted patches 18 (100.0%)" in page  # half of 12 patches in three images
    assert "(random) for one image: each hides 6 of 12 patches" in page
    assert "1 of 8, in 3 images" in page
    sheets = {path.stem: path for path in (tmp_path / "sheet").iterdir()}
    names = {"masked", "masks", "tokens", "codebook", "attention", "heads", "colors", "neighbors", "patch-neighbors"}
    assert sheets.keys() == names
    with Image.open(sheets["masked"]) as image:
        assert image.size == (5 * 138 + 10, 3 * 138 + 26)  # five columns of three images
    assert capsys.readouterr().out.startswith(f"written: {out}, and 9 sheets as PNG in ")
    assert "://" not in page  # nothing is fetched
    first = page
    assert command("show", pretrained / "photos", "--model", pretrained / "pre", "--out", out) == 0
    assert out.read_text() == first
    assert command("show", pretrained / "photos", "--model", pretrained / "wrong", "--out", out, "--only", "masks") == 0
    assert "18 predicted patches 0 (0.0%)" in out.read_text()


def test_a_code_is_decoded_to_its_mean_patch(pretrained: Path) -> None:
    tokenizer, codes = beitkit.load_tokenizer(pretrained / "tok"), torch.tensor([3, 0, 7])
    assert isinstance(tokenizer, KMeansTokenizer)
    torch.testing.assert_close(
        decoded_codes(tokenizer, codes, start_runtime(MachineConfig(**CPU))), tokenizer.mean_patches[codes]
    )


def test_a_tokenizer_alone(pretrained: Path, tmp_path: Path) -> None:
    shown = beitkit.show(pretrained / "photos", model=pretrained / "tok", out=tmp_path / "t.html", **CPU)
    assert [path.name for path in shown.sheets] == ["tokens.png", "codebook.png"]


def test_a_classifier_says_why(world: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    out, arguments = tmp_path / "c.html", ["show", world / "new", "--model", world / "cls", "--only", "classes"]
    assert command(*arguments, "--count", 3, "--out", out) == 0
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    first = model.predict(sorted((world / "new").rglob("*.png"))[0]).best
    assert f"{first[0].name} {first[0].probability:.1%}" in out.read_text()
    assert command(*arguments, "--target", "dog", "--out", out) == 0
    assert "for dog" in out.read_text()
    capsys.readouterr()
    assert command(*arguments, "--target", "cow", "--out", out) == 2
    assert capsys.readouterr().err == "beitkit: --target 'cow' is not one of the 3 classes: cat, dog, emu\n"


def test_a_segmenter_in_its_colors(world: Path, tmp_path: Path) -> None:
    backbone = replace(PRETRAINED, depth=4, mask_token=False, final_norm=False)
    segmenter = Segmenter(SegmenterConfig(backbone=backbone, classes=("sky", "road"), head="setr_pup", channels=8))
    beitkit.save(drawn(segmenter), tmp_path / "seg")  # type: ignore[arg-type]
    out = tmp_path / "s.html"
    shown = beitkit.show(world / "new", model=tmp_path / "seg", out=out, count=2, only=("scenes",), **CPU)
    assert [path.name for path in shown.sheets] == ["scenes.png"]
    shares = [float(share) for share in re.findall(r"(?:sky|road) ([0-9.]+)%", out.read_text())]
    assert sum(shares) == pytest.approx(100, abs=0.11)


def test_one_image_has_no_neighbors_and_a_broken_one_is_left_out(
    world: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    image = world / "new" / "cat" / "00.png"
    assert command("show", image, "--model", world / "pre", "--out", tmp_path / "one.html", "--queries", 1, 1, 3, 4) == 0
    # Its tokenizer is not known, so nothing can be filled in.
    assert {path.stem for path in (tmp_path / "one").iterdir()} == {"masked", "masks", "attention", "heads", "colors"}
    assert "give <code class=" in (tmp_path / "one.html").read_text()
    (tmp_path / "broken.png").write_text("no image")
    capsys.readouterr()
    arguments = ["show", image, tmp_path / "broken.png", "--model", world / "pre", "--out", tmp_path / "two.html"]
    assert command(*arguments, "--only", "colors") == 0
    assert capsys.readouterr().err.startswith(f"unreadable: {tmp_path / 'broken.png'}: ")
    assert command("show", tmp_path / "broken.png", "--model", world / "pre", "--out", tmp_path / "three.html") == 2
    assert "not one of 1 images can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.png"], "--out must end in .html, got x.png; the sheets go into the folder x"),
        (
            ["--only", "classes"],
            "--only names classes, which is not there in a pre-training network, which has masks, attention, heads, ",
        ),
        (["--only", "tokens"], "--only names tokens, which needs a tokenizer: give --tokenizer"),
        (["--block", "4"], "--block 4 is not there: this network has blocks 1 to 3"),
        (["--queries", "4", "1"], "--queries names row 4, column 1; the grid has 3 rows and 4 columns of patches"),
    ],
)
def test_what_cannot_be_shown(
    options: list[str], message: str, world: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in options else ["--out", tmp_path / "x.html"]
    assert command("show", world / "new", "--model", world / "pre", *out, *options) == 2
    assert capsys.readouterr().err.startswith(f"beitkit: {message}")


def test_another_tokenizer_is_refused(pretrained: Path, tmp_path: Path) -> None:
    save_native(KMeansTokenizer(KMeansConfig(vocabulary=8, stride=4, margin=0)), tmp_path / "other")
    with pytest.raises(UserError, match="is not the tokenizer that .* learned from"):
        beitkit.show(
            pretrained / "photos", model=pretrained / "pre", tokenizer=tmp_path / "other", out=tmp_path / "x.html", **CPU
        )
