"""Predictions by Python: of a loaded model, and of the objects that batch engines ship."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.train import MachineConfig
from beitkit.data.sources.find import find_labeled
from beitkit.data.stream import Reading, evaluation_batches, evaluation_dataset
from beitkit.errors import UserError
from beitkit.evaluation.classification import ClassifierQuality

FLOAT32 = MachineConfig(device="cpu", precision="float32", threads=1)


def evaluated_logits(model: beitkit.Classifier, images: Path) -> tuple[list[Path], torch.Tensor]:
    """The files of class folders, and the logits that `beitkit evaluate` measures."""
    files = find_labeled(images)
    dataset = evaluation_dataset(files, model.config.backbone, model.config.preprocessing)
    reading = Reading(7, workers=0, device=torch.device("cpu"), max_broken=0.0, report=lambda *_: None, list_file=None)
    stream = evaluation_batches(dataset, model.config.preprocessing, reading)
    logits, _ = ClassifierQuality(model, lambda share: stream).answers()
    return [files.path(index) for index in range(len(files))], logits


def test_predict_is_evaluate(world: Path) -> None:
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    paths, logits = evaluated_logits(model, world / "new")
    expected = torch.softmax(logits, 1)
    predictions = model.predict(paths, top=2)
    for prediction, row in zip(predictions, expected, strict=True):
        assert prediction.name == model.config.classes[int(row.argmax())]
        assert prediction.probability == pytest.approx(row.max().item(), abs=1e-6)
        assert [prediction.probabilities[name] for name in model.config.classes] == pytest.approx(row.tolist(), abs=1e-6)
        assert len(prediction.best) == 2
        assert prediction.best[0].probability >= prediction.best[1].probability
    one = model.predict(str(paths[3]))
    assert one.probabilities == pytest.approx(predictions[3].probabilities, abs=1e-6)
    assert len(one.best) == 3
    assert model.predict(Image.open(paths[3])) == one
    assert model.predict([]) == []


def test_several_classes_are_sigmoids(world: Path) -> None:
    model = beitkit.load(world / "several")
    assert isinstance(model, beitkit.Classifier)
    paths, logits = evaluated_logits(model, world / "new")
    expected = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    said = [[prediction.probabilities[name] for name in model.config.classes] for prediction in model.predict(paths)]
    np.testing.assert_allclose(said, expected, atol=1e-6)
    predictor = beitkit.Predictor(world / "several", machine=FLOAT32)
    for text, row in zip(predictor({"path": paths})["predicted"], expected, strict=True):
        assert set(filter(None, text.split("|"))) == {
            name for name, share in zip(model.config.classes, row, strict=True) if share >= 0.5
        }


def test_a_network_without_a_reader_or_in_training_says_so(world: Path) -> None:
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    with pytest.raises(UserError, match="no reader of images; load it with beitkit.load"):
        beitkit.Classifier(model.config).eval().predict("a.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        model.predict(world / "nowhere.jpg")
    with pytest.raises(UserError, match="top must be at least 1"):
        model.predict("a.jpg", top=0)
    with pytest.raises(UserError, match="training mode"):
        model.train().predict("a.jpg")


def test_a_predictor_survives_pickling_and_takes_paths_and_arrays(world: Path) -> None:
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    predictor = pickle.loads(pickle.dumps(beitkit.Predictor(world / "cls", machine=FLOAT32)))
    paths = sorted((world / "new").rglob("*.png"))[:5]
    expected = [[prediction.probabilities[name] for name in model.config.classes] for prediction in model.predict(paths)]
    given = np.array([str(path) for path in paths[:2]] + [str(world / "model.txt")] + [str(path) for path in paths[2:]])
    result = predictor({"path": given, "id": np.arange(6)})
    assert result["id"].tolist() == list(range(6))
    assert result["path"].tolist() == given.tolist()
    assert [bool(error) for error in result["error"]] == [False, False, True, False, False, False]
    assert result["predicted"][2] == ""
    assert np.isnan(result["probability"][2])
    kept = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(result["probabilities"][kept], expected, atol=1e-6)
    np.testing.assert_allclose(result["probability"][kept], np.max(expected, axis=1), atol=1e-6)
    arrays = predictor({"image": [np.array(Image.open(path)) for path in paths]})
    np.testing.assert_allclose(arrays["probabilities"], expected, atol=1e-6)
    assert "image" not in arrays
    with pytest.raises(UserError, match="this one has photo"):
        predictor({"photo": given})
    with pytest.raises(UserError, match="names no classes"):
        beitkit.Predictor(world / "pre", machine=FLOAT32)({"path": given})


def test_a_predictor_reads_a_checkpoint_that_was_written_anew(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "cls", tmp_path / "model")
    predictor = beitkit.Predictor(tmp_path / "model", machine=FLOAT32)
    image = {"path": [next((world / "new").rglob("*.png"))]}
    before = predictor(image)["probabilities"]
    other = beitkit.load(world / "several")
    beitkit.save(other, tmp_path / "model2")
    shutil.copy(tmp_path / "model2" / "model.safetensors", tmp_path / "model" / "new.safetensors")
    (tmp_path / "model" / "new.safetensors").replace(tmp_path / "model" / "model.safetensors")
    assert not np.allclose(predictor(image)["probabilities"], before)


@pytest.mark.parametrize("name", ["cls", "pre"])
def test_features_are_the_network_s(world: Path, name: str) -> None:
    model = beitkit.load(world / name)
    cls = beitkit.load(world / "cls")
    assert isinstance(cls, beitkit.Classifier)
    assert cls.reader is not None
    paths = sorted((world / "new").rglob("*.png"))[:3]
    # The two networks see images of the same size with the same statistics.
    images = cls.reader(paths)

    def embedded(**options: object) -> np.ndarray:
        embedding = beitkit.Embedding(**options)  # type: ignore[arg-type]
        result = beitkit.Embedder(world / name, embedding=embedding, machine=FLOAT32)({"path": paths})["features"]
        assert result.shape == (3, *embedding.shape(model))
        return result

    with torch.no_grad():
        whole, raw = model.backbone(images), model.backbone.intermediates(images, range(3))
        pooled = model.features(images) if isinstance(model, beitkit.Classifier) else whole.patches.mean(1)
    np.testing.assert_allclose(embedded(), pooled, atol=1e-5)
    np.testing.assert_allclose(embedded(pool="cls"), whole.cls, atol=1e-5)
    np.testing.assert_allclose(embedded(pool="patches"), whole.patches, atol=1e-5)
    np.testing.assert_allclose(embedded(block=2), raw[1].patches.mean(1), atol=1e-5)
    both = [torch.cat((one.cls, one.patches.mean(1)), dim=1) for one in raw]
    np.testing.assert_allclose(embedded(block=3, pool="both"), both[2], atol=1e-5)
    np.testing.assert_allclose(embedded(block="all", pool="both"), torch.stack(both, dim=1), atol=1e-5)
    np.testing.assert_allclose(embedded(block="all", pool="patches")[:, 1], raw[1].patches, atol=1e-5)


def test_a_model_whose_outputs_are_not_finite_is_praised_by_nobody(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are finite, but overflow in the second block."""
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    with torch.no_grad():
        model.backbone.blocks[1].mlp.fc1.weight.fill_(3e38)
    beitkit.save(model, tmp_path / "bad")
    images, bad = str(world / "new"), str(tmp_path / "bad")
    wanted = "are not finite (NaN or infinite) for"
    for arguments in (
        ["evaluate", images, "--model", bad],
        ["predict", images, "--model", bad],
        ["predict", images, "--model", bad, "--out", str(tmp_path / "predictions.csv")],
        ["embed", images, "--model", bad, "--out", str(tmp_path / "features.npy")],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--workers", "0"])
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert f"the outputs of {bad} (native) {wanted}" in said.err, arguments
        assert "nan" not in said.out.lower(), arguments
    paths = sorted((world / "new").rglob("*.png"))[:2]
    with pytest.raises(UserError, match="for 2 of 2 images"):
        model.predict(paths)
    with pytest.raises(UserError, match="for 2 of 2 images"):
        beitkit.Predictor(bad, machine=FLOAT32)({"path": paths})
