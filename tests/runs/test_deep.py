"""Images of 16 bits and of 13 channels, from their files to predictions and ONNX, with tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import beitkit
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.errors import UserError
from beitkit.runs.checkpoints.programs import export

CPU = {"threads": 1, "device": "cpu", "precision": "float32"}
DVAE = DVAEConfig(vocabulary=16, stride=4, hidden=16, codebook_dim=8)
NANO = {"size": "nano", "image_size": 64, "patch": 16}
RNG = np.random.default_rng(0)


def labeled(folder: Path, channels: int, depth: int) -> Path:
    """Two classes, each brighter in a channel of its own; values of `depth` bits in 16-bit TIFF."""
    for split, count in (("train", 6), ("val", 2)):
        for label, bright in (("a", 0), ("b", channels - 1)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                bands = RNG.integers(0, 2 ** (depth - 1), (40, 44, channels)).astype(np.uint16)
                bands[..., bright] += 2 ** (depth - 1)
                path = folder / split / label / f"{number}.tif"
                several = {"planarconfig": "contig"} if channels > 1 else {}
                tifffile.imwrite(path, bands if several else bands[..., 0], photometric="minisblack", **several)
    return folder


def test_13_bands_go_from_files_to_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images = labeled(tmp_path / "set", 13, 12)
    tok, pre, cls = (tmp_path / name for name in ("tok", "pre", "cls"))
    beitkit.tokenizer(images / "train", out=tok, image_size=32, steps=2, batch_size=4, dvae=DVAE, **CPU)
    assert "pixels: 13 channels of uint16" in capsys.readouterr().err
    tokenizer = beitkit.load_tokenizer(tok)
    assert tokenizer.channels == 13
    assert tokenizer.value_range is not None
    assert len(tokenizer.value_range) == 13
    network = NetworkConfig(normalization="data")
    beitkit.pretrain(images / "train", tokenizer=tok, out=pre, steps=2, batch_size=4, network=network, **NANO, **CPU)
    stored = beitkit.load(pre).config.preprocessing
    assert stored.value_range == tokenizer.value_range
    assert len(stored.mean) == 13
    beitkit.finetune(images, model=pre, out=cls, steps=30, batch_size=4, lr=4e-3, **CPU)
    model = beitkit.load(cls)
    assert isinstance(model, beitkit.Classifier)
    assert model.config.preprocessing.value_range == stored.value_range
    assert model.config.preprocessing.mean == stored.mean

    file = images / "val" / "a" / "0.tif"
    array = tifffile.imread(file)
    expected = model.predict(file).probabilities
    for form in (array, array.transpose(2, 0, 1), torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)):
        assert model.predict(form).probabilities == pytest.approx(expected, abs=1e-6)
    beitkit.predict(images / "val", model=cls, out=tmp_path / "p.jsonl", batch_size=4, **CPU)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["error"] for row in rows] == [None] * 4
    assert rows[0]["probabilities"] == pytest.approx(expected, abs=1e-4)
    beitkit.embed(images / "val", model=cls, out=tmp_path / "e.npy", batch_size=4, **CPU)
    assert np.isfinite(np.load(tmp_path / "e.npy")).all()
    assert beitkit.evaluate(images, model=cls, **CPU).images == 4

    assert export(model, tmp_path / "m.onnx") < 1e-4
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    shown = model.reader([file])
    assert shown.shape == (1, 13, 64, 64)
    with torch.no_grad():
        assert np.allclose(session.run(None, {"images": shown.numpy()})[0], model(shown), atol=1e-4)
    said = json.loads(session.get_modelmeta().custom_metadata_map["beitkit"])
    assert len(said["preprocessing"]["value_range"]) == 13


def test_16_bit_gray_finetunes_rgb_weights_and_8_bit_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(4):
        Image.fromarray(RNG.integers(0, 256, (40, 44, 3)).astype(np.uint8)).save(plain / f"{number}.png")
    beitkit.pretrain(plain, target="pixels", out=tmp_path / "pre", steps=1, batch_size=2, **NANO, **CPU)
    images = labeled(tmp_path / "set", 1, 12)
    options = {"model": tmp_path / "pre", "steps": 1, "batch_size": 4, **CPU}
    beitkit.finetune(images, out=tmp_path / "one", channels=1, value_range=(0.0, 4095.0), **options)
    model = beitkit.load(tmp_path / "one")
    assert model.config.backbone.channels == 1
    assert model.config.preprocessing.value_range == ((0.0, 4095.0),)
    beitkit.finetune(images, out=tmp_path / "three", **options)
    assert beitkit.load(tmp_path / "three").config.backbone.channels == 3
    capsys.readouterr()
    beitkit.predict(plain, model=tmp_path / "one", out=tmp_path / "p.csv", **CPU)
    assert "4 of 4 images looked at are of another range than the network's" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 4 images can be read"):
        beitkit.predict(images / "val", model=beitkit_8_bit(tmp_path), out=tmp_path / "q.csv", **CPU)
    assert "bits a channel, and nothing says what they mean" in capsys.readouterr().err


def beitkit_8_bit(folder: Path) -> Path:
    """A classifier of 8-bit images."""
    model = beitkit.load(folder / "pre", task="classify", num_classes=2)
    beitkit.save(model, folder / "8-bit")
    return folder / "8-bit"


def test_a_tokenizer_of_8_bit_images_does_not_fit_16_bit_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    beitkit.save(beitkit.DiscreteVAE(DVAE), tmp_path / "tok")
    images = labeled(tmp_path / "set", 3, 12)
    with pytest.raises(UserError, match="the tokenizer was trained on images of 8 bits, and here are values"):
        beitkit.pretrain(images, tokenizer=tmp_path / "tok", out=tmp_path / "pre", steps=1, batch_size=2, **NANO, **CPU)
    with pytest.raises(UserError, match="the images have 3 channels, not 13"):
        beitkit.pretrain(images, target="pixels", channels=13, out=tmp_path / "pre", steps=1, batch_size=2, **NANO, **CPU)


def test_segmentation_of_five_bands(tmp_path: Path) -> None:
    for number in range(6):
        bands = RNG.integers(0, 2000, (48, 56, 5)).astype(np.uint16)
        mask = np.zeros((48, 56), np.uint8)
        mask[10:30, 8:40] = 1
        bands[mask == 1, 3] += 5000
        for part in ("images", "masks"):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / "set" / "images" / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig")
        Image.fromarray(mask).save(tmp_path / "set" / "masks" / f"{number}.png")
    options = {
        "scratch": True,
        "size": "nano",
        "patch": 8,
        "image_size": 32,
        "steps": 2,
        "batch_size": 2,
        "normalization": "data",
    }
    beitkit.segment(tmp_path / "set", out=tmp_path / "seg", **options, **CPU)
    model = beitkit.load(tmp_path / "seg")
    assert isinstance(model, beitkit.Segmenter)
    assert (model.config.backbone.channels, len(model.config.preprocessing.mean)) == (5, 5)
    file = tmp_path / "set" / "images" / "0.tif"
    assert model.predict(file).label_map.equal(model.predict(tifffile.imread(file)).label_map)
    beitkit.predict(tmp_path / "set" / "images", model=tmp_path / "seg", out=tmp_path / "masks", **CPU)
    assert len(list((tmp_path / "masks" / "index").iterdir())) == 6
    beitkit.evaluate(tmp_path / "set", model=tmp_path / "seg", **CPU)


def test_an_image_in_several_files_by_a_list_with_a_column_for_each(tmp_path: Path) -> None:
    rows = ["band1,band2,label"]
    for number in range(8):
        label = "ab"[number % 2]
        for band in (1, 2):
            values = RNG.integers(0, 1000, (40, 44)).astype(np.uint16) + (3000 if (band == 1) == (label == "a") else 0)
            tifffile.imwrite(tmp_path / f"{number}_{band}.tif", values.astype(np.uint16), photometric="minisblack")
        rows.append(f"{number}_1.tif,{number}_2.tif,{label}")
    table = tmp_path / "list.csv"
    table.write_text("\n".join(rows) + "\n")
    options = {"scratch": True, "size": "nano", "patch": 16, "image_size": 64, "steps": 2, "batch_size": 2, **CPU}
    beitkit.finetune(table, out=tmp_path / "cls", **options)
    model = beitkit.load(tmp_path / "cls")
    assert model.config.backbone.channels == 2
    assert len((tmp_path / "cls" / "split.csv").read_text().splitlines()) == 1 + 2 + 8
    beitkit.finetune(tmp_path / "cls" / "split.csv", out=tmp_path / "again", **options)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cls", "again")]
    assert weights[0] == weights[1]
    beitkit.predict(table, model=tmp_path / "cls", out=tmp_path / "p.jsonl", **CPU)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    both = np.stack([tifffile.imread(tmp_path / f"0_{band}.tif") for band in (1, 2)])
    assert lines[0]["probabilities"] == pytest.approx(model.predict(both).probabilities, abs=1e-4)
    (tmp_path / "one.csv").write_text("path,label\n1_1.tif,b\n")
    with pytest.raises(UserError, match="a training image consists of 2 files and a validation image of 1;"):
        beitkit.finetune(table, val=tmp_path / "one.csv", out=tmp_path / "mixed", **options)
    (tmp_path / "json.jsonl").write_text(json.dumps({"bands": ["0_1.tif", "0_2.tif"]}) + "\n")
    beitkit.embed(tmp_path / "json.jsonl", model=tmp_path / "cls", out=tmp_path / "e.npy", **CPU)
    assert np.isfinite(np.load(tmp_path / "e.npy")).all()
    table.write_text("band1,band2,label\n0_1.tif,missing.tif,a\n")
    with pytest.raises(UserError, match="line 2: there is no image 'missing.tif'"):
        beitkit.finetune(table, out=tmp_path / "none", **options)


def test_segmentation_of_images_in_several_files(tmp_path: Path) -> None:
    """Two files of one band each are the image that one file of two bands is."""
    rows, whole = ["band1,band2,mask"], ["image,mask"]
    for number in range(6):
        bands = RNG.integers(0, 2000, (48, 56, 2)).astype(np.uint16)
        mask = np.zeros((48, 56), np.uint8)
        mask[10:30, 8:40] = 1
        bands[mask == 1, 1] += 5000
        for band in (0, 1):
            tifffile.imwrite(tmp_path / f"{number}_{band}.tif", bands[..., band], photometric="minisblack")
        tifffile.imwrite(tmp_path / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig")
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
        rows.append(f"{number}_0.tif,{number}_1.tif,{number}.png")
        whole.append(f"{number}.tif,{number}.png")
    for name, lines in (("bands.csv", rows), ("whole.csv", whole)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    options = {"scratch": True, "size": "nano", "patch": 8, "image_size": 32, "steps": 2, "batch_size": 2, **CPU}
    for name in ("bands", "whole"):
        beitkit.segment(tmp_path / f"{name}.csv", val=tmp_path / f"{name}.csv", out=tmp_path / name, **options)
    assert (tmp_path / "bands" / "scenes.csv").read_text().startswith("band1,band2,mask,split\n")
    models = [beitkit.load(tmp_path / name).state_dict() for name in ("bands", "whole")]
    assert all(tensor.equal(models[1][name]) for name, tensor in models[0].items())
    beitkit.segment(tmp_path / "bands" / "scenes.csv", out=tmp_path / "again", **options)
    with pytest.raises(UserError, match="a training image consists of 2 files and a validation image of 1;"):
        beitkit.segment(tmp_path / "bands.csv", val=tmp_path / "whole.csv", out=tmp_path / "mixed", **options)
    (tmp_path / "list.csv").write_text("band1,band2\n0_0.tif,0_1.tif\n")
    beitkit.predict(tmp_path / "list.csv", model=tmp_path / "bands", out=tmp_path / "masks", **CPU)
    assert len(list((tmp_path / "masks" / "index").iterdir())) == 1
    (tmp_path / "bands.csv").write_text("band1,band2,mask\n0_0.tif,gone.tif,0.png\n")
    with pytest.raises(UserError, match="line 2: there is no file 'gone.tif'"):
        beitkit.segment(tmp_path / "bands.csv", out=tmp_path / "none", **options)
