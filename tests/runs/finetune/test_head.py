"""A head that is fitted before anything else learns (LP-FT)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.data import NO_AUGMENT, ViewConfig
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.data.sources.split import train_and_val
from beitkit.data.stream import Reading
from beitkit.errors import Interrupted, UserError
from beitkit.evaluation.floors import chosen_logistic
from beitkit.interop.formats.native import save_native
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.finetune.head import fit_head
from beitkit.train import loop as loops
from beitkit.train.machine.runtime import start_runtime

MACHINE = MachineConfig(device="cpu", threads=1, workers=0, precision="float32")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three colors of noise, and a pre-trained network that has learned nothing."""
    folder = tmp_path_factory.mktemp("world")
    for index in range(45):
        pixels = np.random.default_rng(index).integers(0, 160, (16, 16, 3))
        pixels[..., index % 3] += 90
        path = folder / "images" / ("train" if index < 30 else "val") / "rgb"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/8", image_size=16, mask_token=True)
    save_native(MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=4)), folder / "pre")
    return folder


@pytest.fixture
def configured(world: Path, tmp_path: Path) -> Callable[..., FinetuneRun]:
    def make(name: str, **changed: object) -> FinetuneRun:
        options = {
            "model": world / "pre",
            "train": TrainConfig(steps=4, batch_size=5, lr=1e-3),
            "machine": MACHINE,
            "optim": OptimConfig(lr_batch=5, min_lr=1e-6, warmup_steps=1),
            "augment": NO_AUGMENT,
            "view": ViewConfig(color_jitter=0.0),
            "loop": LoopConfig(ema=0.0, log_every=1, save_every=2),
        }
        return FinetuneRun(world / "images", out=tmp_path / name, **options | changed)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("pooling", ["mean", "grid"])
def test_the_head_answers_as_the_regression_that_it_is(pooling: str, world: Path) -> None:
    train, _ = train_and_val(world / "images", None, 0)
    backbone = BackboneConfig.named("nano/8", image_size=16, final_norm=False)
    model = Classifier(ClassifierConfig(backbone=backbone, classes=train.classes, pooling=pooling))  # type: ignore[arg-type]
    reading = Reading(7, 0, torch.device("cpu"), 0.0, lambda file, reason: None, None)
    said = fit_head(model, train, reading, start_runtime(MACHINE))
    images = torch.stack([torch.from_numpy(np.array(Image.open(train.path(i)))).permute(2, 0, 1) for i in range(len(train))])
    with torch.no_grad():
        features = model.features((images / 255 - 0.5) / 0.5)
        logits = model.head(features)
    assert train.labels is not None
    labels = torch.from_numpy(train.labels)
    fitted = chosen_logistic(features, labels, 3)
    standardized = (features - features.mean(0)) / fitted.standard.deviation
    expected = standardized @ fitted.weights[0] + fitted.weights[1]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert f"{float((logits.argmax(1) == labels).float().mean()):.1%}" in said


def test_a_head_that_was_fitted_is_good_at_once_and_one_of_zeros_is_not(configured: Callable[..., FinetuneRun]) -> None:
    still = TrainConfig(steps=1, batch_size=5, lr=1e-9)
    options = {"train": still, "optim": OptimConfig(lr_batch=5, min_lr=0.0, warmup_steps=0)}
    fitted = finetune.run(configured("probe", head_init="probe", **options))
    zero = finetune.run(configured("zero", head_init="zero", **options))
    assert fitted.accuracy == 1
    assert zero.accuracy < 1


def test_it_is_chosen_for_few_images_and_said_and_a_cut_run_goes_on_from_its_checkpoint(
    configured: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = finetune.run(configured("whole"))
    said = capsys.readouterr().err
    assert "--head-init probe: pre-trained, 30 images" in said
    assert "--pooling grid: images of 16 pixels" in said
    assert "head: logistic regression on the frozen features" in said
    save = loops.Checkpoints.save

    def cut(self: loops.Checkpoints, step: int, *state: dict, **rest: bool) -> None:
        save(self, step, *state, **rest)
        if step == 2:
            raise Interrupted(2, 4, 2)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Checkpoints, "save", cut)
        with pytest.raises(Interrupted):
            finetune.run(configured("cut"))
    monkeypatch.setattr(finetune, "fit_head", lambda *arguments: pytest.fail("the head was fitted again"))
    resumed = finetune.run(configured("cut"))
    assert (resumed.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_a_head_that_is_there_is_not_replaced(configured: Callable[..., FinetuneRun]) -> None:
    first = finetune.run(configured("first", head_init="zero"))
    assert isinstance(beitkit.load(first.folder), beitkit.Classifier)
    with pytest.raises(UserError, match="`head_init='probe'` makes a head, and the checkpoint has one"):
        finetune.run(configured("second", model=first.folder, head_init="probe"))
