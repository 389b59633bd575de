"""How images come to the network's shape: stored with the model, obeyed by every verb, noted where much is cut away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.data import INCEPTION, Fit, Preprocessing
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.configs.train import MachineConfig
from beitkit.data.sources.find import find_images
from beitkit.data.views.framing import in_words
from beitkit.interop.formats.hugging_face import processor_config, refuse_for_hugging_face
from beitkit.nn.models import Classifier
from beitkit.runs.training.reader import note_on_cut

MACHINE = {"threads": 1, "device": "cpu", "precision": "float32", "workers": 0}
FITS: tuple[Fit, ...] = ("crop", "squeeze", "letterbox")


def network(fit: Fit, size: int = 48) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(
        backbone=BackboneConfig.named("nano/16", image_size=size, final_norm=False),
        classes=("blue", "red"),
        preprocessing=INCEPTION.shown(fit, None),
    )
    return Classifier(config, head_scale=30.0).eval()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "wide"
    for index in range(8):
        path = folder / ("red", "blue")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (50, 150, 3)).astype(np.uint8)).save(path)
    return folder


def by_hand(image: Image.Image, fit: Fit) -> np.ndarray:
    """50x150 pixels for a network of 48x48: Pillow's own resizing, with crop share 0.875 where the center is cut out."""
    if fit == "squeeze":
        return np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC))
    if fit == "letterbox":
        canvas = np.full((48, 48, 3), 128, dtype=np.uint8)
        canvas[16:32] = np.asarray(image.resize((48, 16), Image.Resampling.BICUBIC))
        return canvas
    resized = image.resize((162, 54), Image.Resampling.BICUBIC)  # 48 / 0.875 = 54.9
    return np.asarray(resized.crop((57, 3, 105, 51)))


@pytest.mark.parametrize("fit", FITS)
def test_what_is_stored_is_obeyed_in_python_and_by_predict_and_embed(wide: Path, tmp_path: Path, fit: Fit) -> None:
    beitkit.save(network(fit), tmp_path / "model")
    model = beitkit.load(tmp_path / "model")
    assert isinstance(model, Classifier)
    path = wide / "red" / "0.png"
    pixels = torch.from_numpy(by_hand(Image.open(path), fit).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = model((pixels - 0.5) / 0.5).softmax(1)[0]
    (seen,) = model.predict([path])
    assert [seen.probabilities[name] for name in model.config.classes] == pytest.approx(expected.tolist(), abs=1e-5)
    beitkit.predict(path, model=tmp_path / "model", out=tmp_path / "p.jsonl", **MACHINE)
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert row["probability"] == pytest.approx(expected.max().item(), abs=1e-4)
    # What is stored as a center crop shows the same when it is asked for with a model that stores another.
    beitkit.save(network("crop"), tmp_path / "other")
    share = model.config.preprocessing.crop_share
    assert share == (0.875 if fit == "crop" else 1.0)
    for name, asked in (("model", None), ("other", fit)):
        beitkit.embed(path, model=tmp_path / name, out=tmp_path / f"{name}.npy", fit=asked, **MACHINE)
    assert np.array_equal(np.load(tmp_path / "model.npy"), np.load(tmp_path / "other.npy"))
    again = beitkit.Predictor(tmp_path / "other", fit=fit, machine=MachineConfig(precision="float32", device="cpu"))(
        {"path": [str(path)]}
    )
    assert again["probabilities"][0] == pytest.approx(expected.tolist(), abs=1e-5)


def test_fine_tuning_stores_it_and_evaluation_can_show_otherwise(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"scratch": True, "size": "nano", "patch": 16, "image_size": 48, "steps": 1, "batch_size": 2, **MACHINE}
    beitkit.finetune(wide, out=tmp_path / "crop", **options)
    note = "leaves out half or more of 6 of the 6 images looked at (median over all: 74% of the pixels)"
    said = capsys.readouterr()
    assert note in said.err + said.out
    assert "fit" not in json.loads((tmp_path / "crop" / "config.json").read_text())  # as before there was such an option
    beitkit.finetune(wide, out=tmp_path / "box", fit="letterbox", **options)
    said = capsys.readouterr()
    assert "leaves out" not in said.err + said.out
    assert "--crop-share 1: letterbox shows whole images" in said.err + said.out
    stored = beitkit.load(tmp_path / "box").config.preprocessing
    assert (stored.fit, stored.crop_share) == ("letterbox", 1.0)
    losses = []
    for asked in (None, *FITS):
        losses.append(beitkit.evaluate(wide, model=tmp_path / "box", fit=asked, **MACHINE).loss)
        assert ("leaves out half" in capsys.readouterr().err) == (asked == "crop")
    assert len({round(loss, 6) for loss in losses}) == 3
    assert losses[0] == losses[3]


def test_no_note_where_little_is_cut_or_whole_images_are_shown(wide: Path) -> None:
    files, crop = find_images(wide), Preprocessing(crop_share=1.0)
    assert "74%" in (note_on_cut(files, (48, 48), Preprocessing()) or "")
    assert "67%" in (note_on_cut(files, (48, 48), crop) or "")
    assert note_on_cut(files, (48, 144), crop) is None
    assert note_on_cut(files, (32, 32), Preprocessing()) is None
    assert note_on_cut(files, (48, 48), replace(crop, fit="squeeze")) is None


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("format", ["timm", "huggingface", "microsoft"])
def test_formats_keep_it(tmp_path: Path, fit: Fit, format: str) -> None:
    model = network(fit)
    target = tmp_path / ("m.pth" if format == "microsoft" else "m")
    beitkit.save(model, target, format=format)
    assert beitkit.load(target).config.preprocessing == model.config.preprocessing
    if format == "huggingface":
        notes = " ".join(refuse_for_hugging_face(model.config))
        assert ("bars of the mean color" in notes) == (fit == "letterbox")
        assert processor_config(model.config)["crop_mode"] == {"crop": "center", "squeeze": "squash", "letterbox": "border"}[fit]


def test_what_a_program_s_images_need_is_said_in_words() -> None:
    tail = "; mean [0.5, 0.5, 0.5], deviation [0.5, 0.5, 0.5] of values from 0 to 1"
    assert in_words(INCEPTION, (224, 224)) == (
        f"the image resized to just cover 256x256 (bicubic), then the center of 224x224{tail}"
    )
    assert in_words(INCEPTION.shown("squeeze", None), (224, 320)) == f"the whole image resized to 224x320 (bicubic){tail}"
    assert in_words(INCEPTION.shown("letterbox", None), (224, 320)) == (
        f"the image resized to fit into 224x320 and put on the mean color (bicubic){tail}"
    )
    assert in_words(INCEPTION, (32, 32)).startswith("the whole image resized to 32x32 (bicubic);")
