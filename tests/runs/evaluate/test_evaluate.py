"""`beitkit evaluate` on generated images and networks with known answers."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.data.sources.find import find_labeled
from beitkit.data.sources.image_list import ImageList
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.runs.evaluate import classifiers
from beitkit.runs.evaluate import run as evaluate
from beitkit.runs.evaluate.config import EvaluateRun

SMALL = ["--threads", "1", "--device", "cpu", "--workers", "0", "--precision", "float32"]
ALSO = {"threads": 1, "device": "cpu", "workers": 0, "precision": "float32"}
CLASSES = ("blue", "green", "red")


def classifier(seed: int, classes: tuple[str, ...] = CLASSES, size: int = 16, multilabel: bool = False) -> Classifier:
    torch.manual_seed(seed)
    backbone = BackboneConfig.named("nano/4", image_size=size, final_norm=False)
    model = Classifier(ClassifierConfig(backbone=backbone, classes=classes, multilabel=multilabel), head_scale=30.0)
    return model.eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three colors with noise, and checkpoints of random classifiers."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for index in range(27):
        noise = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        noise[..., index % 3] += 120
        path = folder / "images" / ("val" if index < 24 else "train") / ("red", "green", "blue")[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    for name, model in (
        ("a", classifier(0)),
        ("b", classifier(1)),
        ("large", classifier(2, size=32)),
        ("turned", classifier(0)),
        ("other", classifier(3, classes=("blue", "green", "pink"))),
        ("several", classifier(4, multilabel=True)),
    ):
        if name == "turned":  # the same network with its classes in another order
            order = [2, 0, 1]
            model.config = replace(model.config, classes=tuple(CLASSES[place] for place in order))
            model.head.weight.data, model.head.bias.data = model.head.weight.data[order], model.head.bias.data[order]
        beitkit.save(model, folder / name)
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/4", image_size=16, mask_token=True)
    beitkit.save(MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=8)), folder / "pre")
    return folder


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), *SMALL])
    assert stopped.value.code == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), *SMALL])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


def direct_logits(model: Classifier, files: ImageList) -> torch.Tensor:
    """The network applied to the images by hand."""
    pixels = [np.asarray(Image.open(files.path(index)).convert("RGB")) for index in range(len(files))]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return model((images - 0.5) / 0.5)


def test_one_model_in_numbers_files_and_words(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = find_labeled(world / "images", "val", classes=CLASSES)
    assert files.labels is not None
    logits, labels = direct_logits(classifier(0), files), torch.from_numpy(files.labels)
    right = int((logits.argmax(1) == labels).sum())

    out = tmp_path / "out"
    command("evaluate", world / "images", "--model", world / "a", "--json", "--out", out)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "evaluation.json").read_text())
    assert printed["images"] == 24
    assert printed["top1"] == pytest.approx(right / 24)
    assert printed["top5"] is None
    assert printed["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert printed["classes"]["red"]["images"] == 8
    assert sum(map(sum, printed["confusion"])) == 24
    assert printed["models"][0]["scores"]["top1"] == printed["top1"]

    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    probabilities = logits.softmax(1)
    for place, row in enumerate(rows):
        assert Path(row["path"]) == files.path(place)
        assert row["label"] == CLASSES[labels[place]]
        assert row["predicted"] == CLASSES[logits[place].argmax()]
        assert float(row["probability"]) == pytest.approx(probabilities[place].max().item(), rel=1e-3)
        assert float(row["label_probability"]) == pytest.approx(probabilities[place, labels[place]].item(), rel=1e-3)

    html = (out / "report.html").read_text()
    for words in ("Confusion matrix", "Reliability", "15 bins of equal width", "Wilson"):
        assert words in html
    command("evaluate", world / "images", "--model", world / "a")
    words = capsys.readouterr().out
    assert f"top-1 {right / 24:.1%} (" in words
    assert words.splitlines()[-1].startswith("give --out to keep a report. Next: beitkit export --model")


def test_several_models_of_other_sizes_and_orders(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [world / name for name in ("a", "turned", "large", "b")]
    result = beitkit.evaluate(world / "images", model=paths, out=tmp_path / "out", **ALSO)
    assert [model.name for model in result.models] == ["a", "turned", "large", "b"]
    first, turned, large, second = (model.scores for model in result.models)
    assert (turned.confusion, turned.loss) == (first.confusion, pytest.approx(first.loss))
    assert large.loss != pytest.approx(first.loss)
    assert len(result.pairs) == 6
    assert result.pairs[0].p_value == 1.0
    alone = beitkit.evaluate(world / "images", model=world / "b", **ALSO)
    assert (alone.single.confusion, alone.loss) == (second.confusion, second.loss)
    assert alone.classes["red"].images == 8
    printed = capsys.readouterr().out
    assert "4 models on the same 24 images" in printed
    assert "exact McNemar p = 1): the difference can be luck" in printed
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Side by side" in html
    assert "Luck or not?" in html
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 1 + 4 * 24


def test_models_of_one_input_share_one_reading(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    stream = classifiers.evaluation_batches
    monkeypatch.setattr(classifiers, "evaluation_batches", lambda *args, **rest: passes.append(1) or stream(*args, **rest))
    beitkit.evaluate(world / "images", model=[world / name for name in ("a", "b", "large", "turned")], **ALSO)
    assert len(passes) == 2


def test_seeds_of_a_set_up_are_one_group(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for seed in range(3):
        runs.append(tmp_path / f"seed-{seed}")
        beitkit.save(classifier(seed), runs[-1])
        config = {
            "verb": "finetune",
            "images": "elsewhere",
            "val": None,
            "out": str(runs[-1]),
            "train": {"seed": seed, "lr": 1.0},
        }
        (runs[-1] / "config.json").write_text(json.dumps(config))
    result = beitkit.evaluate(world / "images", model=runs, **ALSO)
    (group,) = result.seeds
    values = [model.headline for model in result.models]
    assert group.seeds == (0, 1, 2)
    assert group.spread == pytest.approx((np.mean(values), np.std(values, ddof=1), 3))
    assert "differ in nothing but their seed (0, 1, 2)" in capsys.readouterr().out


def test_image_size_and_crop_share_change_what_is_seen(world: Path) -> None:
    options = {"model": world / "large", **ALSO}
    as_trained = beitkit.evaluate(world / "images", **options)
    larger = beitkit.evaluate(world / "images", image_size=40, **options)
    whole = beitkit.evaluate(world / "images", image_size=40, crop_share=1.0, **options)
    assert len({as_trained.loss, larger.loss, whole.loss}) == 3


def test_a_crop_share_without_a_meaning_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks for at most 32 pixels see whole images."""
    images, model = world / "images", world / "a"
    assert max(beitkit.load(model).config.backbone.image_size) <= 32
    message = refused(capsys, "evaluate", images, "--model", model, "--crop-share", 0.5)
    assert "--crop-share 0.5 has no meaning for a network for images of" in message
    as_trained, whole = (beitkit.evaluate(images, model=model, crop_share=share, **ALSO) for share in (None, 1.0))
    assert as_trained.loss == whole.loss


def test_several_labels_an_image(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = find_labeled(world / "images", "val", classes=CLASSES)
    targets = np.random.default_rng(1).random((24, 3)) < 0.5
    listed = tmp_path / "several.jsonl"
    rows = [
        {"path": str(single.path(index)), "labels": [name for name, shown in zip(CLASSES, row, strict=True) if shown]}
        for index, row in enumerate(targets)
    ]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    result = beitkit.evaluate(listed, model=world / "several", out=out, **ALSO)
    logits = direct_logits(classifier(4, multilabel=True), single)
    exact = ((logits > 0) == torch.from_numpy(targets)).all(1).float().mean().item()
    assert result.single.subset_accuracy == pytest.approx(exact)
    assert "mAP" in capsys.readouterr().out
    assert "average precision" in (out / "report.html").read_text()
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[5]["labels"] == "|".join(name for name, shown in zip(CLASSES, targets[5], strict=True) if shown)
    assert float(rows[5]["probability of green"]) == pytest.approx(logits[5, 1].sigmoid().item(), rel=1e-3)
    with pytest.raises(beitkit.errors.UserError, match="has several labels an image, but .* was trained for one"):
        evaluate.run(EvaluateRun(listed, model=(world / "a",)))


def test_the_stored_temperature_is_used_and_what_it_changed_is_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier(0)
    model.config = replace(model.config, temperature=3.0)
    beitkit.save(model, tmp_path / "calm")
    out = tmp_path / "out"
    result = beitkit.evaluate(world / "images", model=[tmp_path / "calm", world / "turned"], out=out, **ALSO)
    calm, plain = (one.scores for one in result.models)
    assert calm.confusion == plain.confusion
    assert calm.calibration == pytest.approx((3.0, plain.loss, plain.calibration_error))
    files = find_labeled(world / "images", "val", classes=CLASSES)
    assert files.labels is not None
    scaled = direct_logits(model, files) / 3
    assert calm.loss == pytest.approx(F.cross_entropy(scaled, torch.from_numpy(files.labels)).item(), rel=1e-4)
    assert f"calm: temperature 3: calibration error {plain.calibration_error:.1%} before, " in capsys.readouterr().out
    assert "Temperature 3: calibration error" in (out / "report.html").read_text()
    with (out / "predictions.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["probability"]) == pytest.approx(scaled[0].softmax(0).max().item(), rel=1e-3)


def test_views_are_averaged_by_evaluate_and_predict_alike(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = InferenceConfig(flip=True, shift=2)
    result = beitkit.evaluate(world / "images", model=world / "a", inference=views, out=tmp_path / "out", **ALSO)
    assert "images (mirrored too, shifted by 2 pixels): top-1" in capsys.readouterr().out
    assert result.loss != beitkit.evaluate(world / "images", model=world / "a", **ALSO).loss
    out = tmp_path / "told.csv"
    beitkit.predict(world / "images" / "val", model=world / "a", inference=views, out=out, **ALSO)
    model = beitkit.load(world / "a")
    told = []
    for path in (tmp_path / "out" / "predictions.csv", out):
        with path.open(newline="") as file:
            told.append({row["path"]: float(row["probability"]) for row in csv.DictReader(file)})
    assert told[0] == pytest.approx(told[1], rel=1e-4)
    path, probability = next(iter(told[0].items()))
    assert model.predict(path, inference=views).probability == pytest.approx(probability, rel=1e-4)
    with pytest.raises(beitkit.errors.UserError, match="of another command .*views was .*mirrored too"):
        beitkit.predict(world / "images" / "val", model=world / "a", out=out, **ALSO)
    capsys.readouterr()
    assert "--inference.stride is for segmentation" in refused(
        capsys, "evaluate", world / "images", "--model", world / "a", "--inference.stride", 4
    )


def test_evaluate_and_predict_obey_the_thresholds(world: Path, tmp_path: Path) -> None:
    model = classifier(4, multilabel=True)
    files = find_labeled(world / "images", "val", classes=CLASSES)
    probabilities = direct_logits(model, files).sigmoid()
    model.config = replace(model.config, thresholds=tuple(probabilities.quantile(0.3, dim=0).tolist()))
    beitkit.save(model, tmp_path / "decided")
    rows = [{"path": str(files.path(index)), "labels": ["red"]} for index in range(len(files))]
    listed = tmp_path / "several.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = beitkit.evaluate(listed, model=tmp_path / "decided", classes=None, out=tmp_path / "out", **ALSO)
    assert result.classes["red"].recall == pytest.approx((probabilities[:, 2] >= model.config.decisions[2]).float().mean().item())
    beitkit.predict(world / "images" / "val", model=tmp_path / "decided", out=tmp_path / "out.csv", **ALSO)
    told = []
    for path in (tmp_path / "out" / "predictions.csv", tmp_path / "out.csv"):
        with path.open(newline="") as file:
            told.append({row["path"]: set(row["predicted"].split("|")) for row in csv.DictReader(file)})
    assert told[0] == told[1]
    assert sum(map(len, told[0].values())) > 1.8 * 24  # each class in 70% of the images


def test_mistakes_are_refused_in_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = world / "images", tmp_path / "out"
    rest = ["--out", out]
    for models, expected in (
        ([world / "pre"], "holds a MaskedImageModel, not a classifier; make one with beitkit finetune"),
        ([world / "a", world / "other"], "(only the second: red; only the first: pink); compare models with the same classes"),
        ([world / "a", world / "several"], "gives several labels an image"),
        ([world / "a", world / "a"], "--model must name each at most once"),
        ([world / "none"], "none"),
    ):
        assert expected in refused(capsys, "evaluate", images, *rest, "--model", *models)
    assert "does not exist" in refused(capsys, "evaluate", tmp_path / "nowhere", *rest, "--model", world / "a")
    assert "--crop-share must lie in (0, 1], got 1.5" in refused(
        capsys, "evaluate", images, "--model", world / "a", "--crop-share", 1.5
    )
    assert "not a whole number of 4x4 patches" in refused(capsys, "evaluate", images, "--model", world / "a", "--image-size", 18)
    assert not out.exists()


def test_runs_that_set_aside_different_images_are_not_compared(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = world / "images" / "val"
    runs = []
    for index in range(2):
        runs.append(tmp_path / f"run-{index}")
        beitkit.save(classifier(index), runs[-1])
        (runs[-1] / "config.json").write_text(json.dumps({"verb": "finetune", "images": str(images), "val": None}))
        aside = images / "red" / f"{3 * index:02d}.png"
        (runs[-1] / "split.csv").write_text(f"path,label,split\n{aside},red,val\n")
    assert "set aside different images" in refused(capsys, "evaluate", images, "--model", *runs)
    alone = beitkit.evaluate(images, model=runs[0], **ALSO)
    assert alone.images == 1
    assert "set aside for validation" in alone.where
