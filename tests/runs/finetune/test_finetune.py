"""Fine-tuning from described fresh networks: it learns, it resumes bit for bit, and EMA, sizes and several labels hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.data import NO_AUGMENT, PAPER_AUGMENT, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.errors import Interrupted, UserError
from beitkit.evaluation.longer import outlook
from beitkit.report.journal import read_journal, series
from beitkit.runs.demo import run as demo
from beitkit.runs.demo.config import DemoRun
from beitkit.runs.finetune import report as finetune_report
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.choose import FinetuneFacts, choose
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.verdict.config import SCRATCH
from beitkit.runs.verdict.measured import named_starts
from beitkit.train import loop as loops
from beitkit.train.step import WeightAverage

HEAVY = replace(PAPER_AUGMENT, erasing=0.5, repeats=3)


def draw_red_and_blue(folder: Path, images: int, train: int, side: int) -> Path:
    """Write train/<class>/ and val/<class>/ with square images of red and blue noise."""
    for index in range(images):
        pixels = np.random.default_rng(index).integers(0, 120, (side, side, 3))
        pixels[..., index % 2 * 2] += 130
        path = folder / ("train" if index < train else "val") / ("red", "blue")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue noise."""
    return draw_red_and_blue(tmp_path_factory.mktemp("images"), 36, 24, 16)


@pytest.fixture
def configured(images: Path, tmp_path: Path) -> Callable[..., FinetuneRun]:
    """A run of a nano network on 16 pixels from scratch, with some fields changed."""

    def make(name: str, **changed: object) -> FinetuneRun:
        run = FinetuneRun(
            images,
            scratch=True,
            size="nano",
            patch=8,
            out=tmp_path / name,
            drop_path=0.1,
            train=TrainConfig(steps=6, batch_size=5, lr=1e-3),
            machine=MachineConfig(device="cpu", threads=1, workers=0, precision="float32"),
            optim=OptimConfig(lr_batch=5, min_lr=1e-6, warmup_steps=1),
            augment=NO_AUGMENT,
            view=ViewConfig(color_jitter=0.0),
            loop=LoopConfig(ema=0.0),
        )
        return replace(run, **changed)  # type: ignore[arg-type]

    return make


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_it_learns_a_tiny_set_and_the_config_is_resolved(configured: Callable[..., FinetuneRun]) -> None:
    result = finetune.run(configured("learns", train=TrainConfig(steps=40, batch_size=8, lr=1e-3)))
    assert result.accuracy == 1
    stored = json.loads((result.folder / "config.json").read_text())
    assert stored["image_size"] == 16
    assert stored["optim"]["layer_decay"] == 1
    assert stored["crop_share"] == 1
    model = beitkit.load(result.folder)
    assert isinstance(model, beitkit.Classifier)
    assert model.config.backbone.image_size == (16, 16)
    again = finetune.run(configured("learns", train=TrainConfig(steps=40, batch_size=8, lr=1e-3)))
    assert again == result


def test_a_head_that_sees_a_grid_learns_from_scratch_and_from_a_checkpoint(configured: Callable[..., FinetuneRun]) -> None:
    length = TrainConfig(steps=40, batch_size=8, lr=1e-3)
    result = finetune.run(configured("grid", pooling="grid", train=length))
    described = {"scratch": False, "size": None, "patch": None, "model": result.folder}
    for folder in (result.folder, finetune.run(configured("on", **described, pooling="mean", train=length)).folder):
        assert json.loads((folder / "result.json").read_text())["top1"] == 1
    again = finetune.run(configured("again", **described | {"model": result.folder.parent / "on"}, pooling="grid", train=length))
    model = beitkit.load(again.folder)
    assert isinstance(model, beitkit.Classifier)
    assert model.head.in_features == 4 * model.config.backbone.width  # a cell for each of 2x2 patches


def test_a_cut_run_with_everything_on_ends_bit_for_bit_the_same(
    configured: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"augment": HEAVY, "loop": LoopConfig(ema=0.9, log_every=1, save_every=2, accumulate=2)}
    whole = finetune.run(configured("whole", **options))
    save = loops.Checkpoints.save

    def cut(self: loops.Checkpoints, step: int, *state: dict, **rest: bool) -> None:
        save(self, step, *state, **rest)
        if step == 4:
            raise Interrupted(4, 6, 2)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Checkpoints, "save", cut)
        with pytest.raises(Interrupted):
            finetune.run(configured("cut", **options))
    continued = finetune.run(configured("cut", **options))
    assert weights(continued.folder) == weights(whole.folder)
    plain = finetune.run(configured("plain", loop=options["loop"]))
    assert weights(plain.folder) != weights(whole.folder)
    report = (whole.folder / "report.html").read_text()
    assert "What the network sees" in report
    assert "Before label smoothing." in report
    assert "Confusion matrix" in report
    assert "Reliability" in report


def test_the_finished_and_the_best_model_are_the_averaged_ones(
    configured: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, torch.Tensor]] = []
    update = WeightAverage.update

    def noted(self: WeightAverage, share: torch.Tensor) -> None:
        update(self, share)
        trained.append({name: parameter.detach().clone() for name, parameter in self.parameters.items()})

    monkeypatch.setattr(WeightAverage, "update", noted)
    run = configured("ema", loop=LoopConfig(ema=0.5), train=TrainConfig(steps=3, batch_size=4, lr=1e-3))
    folder = finetune.run(run).folder
    finished, best = beitkit.load(folder), beitkit.load(folder / "checkpoints" / "best")
    first_lr_is_zero = trained[0]  # the first step of a warm-up moves nothing
    for name, parameter in finished.named_parameters():
        values = [step[f"model.{name}"] for step in trained]
        expected = 0.25 * first_lr_is_zero[f"model.{name}"] + 0.25 * values[1] + 0.5 * values[2]
        assert torch.allclose(parameter, expected, atol=1e-6), name
        assert torch.equal(parameter, best.get_parameter(name)), name
    assert not torch.allclose(finished.head.weight, trained[-1]["model.head.weight"], atol=1e-6)


def test_deit_s_network_and_another_image_size(configured: Callable[..., FinetuneRun]) -> None:
    network = NetworkConfig(positions="none", layer_scale=0.0)
    run = configured("deit", pooling="cls", network=network, crop_share=1.0, train=TrainConfig(steps=2, batch_size=4, lr=1e-3))
    folder = finetune.run(run).folder
    model = beitkit.load(folder)
    assert isinstance(model, beitkit.Classifier)
    assert model.config.pooling == "cls"
    assert model.config.backbone.absolute_positions
    assert model.config.backbone.layer_scale is None
    assert model.config.preprocessing.crop_share == 1
    larger = replace(
        configured("larger", train=TrainConfig(steps=2, batch_size=4, lr=1e-3)),
        model=folder, scratch=False, size=None, patch=None, image_size=32,
    )  # fmt: skip
    resized = beitkit.load(finetune.run(larger).folder)
    assert isinstance(resized, beitkit.Classifier)
    assert resized.config.backbone.grid == (4, 4)
    assert resized.config.preprocessing.crop_share == 1


def test_a_mixed_target_is_written_in_words() -> None:
    names = ("blue", "red", "green")
    assert finetune_report.named_target(torch.tensor([0.7, 0.3, 0.0]), names) == "70% blue, 30% red"
    assert finetune_report.named_target(torch.tensor([0.0, 0.0, 1.0]), names) == "100% green"
    assert finetune_report.named_target(torch.zeros(3), names) == "none of the classes"


def test_several_labels_an_image(configured: Callable[..., FinetuneRun]) -> None:
    """Each image shows its color, and all of them are images."""
    plain = configured("plain")
    rows = [
        {"path": str(path), "labels": [path.parent.name, "image"], "split": path.parent.parent.name}
        for path in sorted(plain.images.glob("*/*/*.png"))
    ]
    listed = plain.images.parent / "several.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = configured("several", images=listed, train=TrainConfig(steps=40, batch_size=8, lr=1e-3))
    result = finetune.run(run)
    assert result.accuracy > 0.95
    assert json.loads((result.folder / "result.json").read_text())["map"] == result.accuracy
    model = beitkit.load(result.folder)
    assert isinstance(model, beitkit.Classifier)
    assert model.config.multilabel
    assert model.config.thresholds is not None
    assert model.config.temperature > 0
    assert "average precision" in (result.folder / "report.html").read_text()
    assert (result.folder / "checkpoints" / "best" / "model.json").exists()
    with pytest.raises(UserError, match="--balanced needs one label an image"):
        finetune.run(configured("balanced", images=listed, balanced=True))


def test_the_demo_leaves_only_what_is_the_network_s_own_to_be_chosen() -> None:
    for start in named_starts((SCRATCH, DemoRun().out / "pretrain")):
        run = demo.finetune_run(DemoRun(), Path("images"), start, 100, 0)
        found = FinetuneFacts(
            images=100, side=28, imbalance=1.0, width=128, depth=3, patch=4, image_size=(28, 28), crop_share=0.875, device="cpu"
        )
        config, lines = choose(run, found)
        assert lines == ("--crop-share 1: up to 32 pixels images are shown whole",)
        assert config == replace(run, crop_share=1.0)
        assert (config.pooling, config.pool_cells, config.head_init) == ("grid", 7, "probe")
        assert config.augment == (NO_AUGMENT if run.scratch else replace(NO_AUGMENT, operations=2, magnitude=9.0))


def test_patience_takes_the_best_evaluation(configured: Callable[..., FinetuneRun]) -> None:
    length = TrainConfig(steps=60, batch_size=8, lr=1e-3)
    options = {"train": length, "patience": 2, "loop": LoopConfig(ema=0.0, evaluate_every=4)}
    result = finetune.run(configured("patient", **options))
    events = [json.loads(line) for line in (result.folder / "journal.jsonl").read_text().splitlines()]
    scores = [event["val/top1"] for event in events if event["kind"] == "evaluate"]
    assert len(scores) == scores.index(max(scores)) + 3 < 15
    assert result.accuracy == max(scores)
    assert weights(result.folder) == weights(result.folder / "checkpoints" / "best")
    report = (result.folder / "report.html").read_text()
    assert f"{4 * len(scores)} of 60 steps (patience 2)" in report
    assert f"after step {4 * (scores.index(max(scores)) + 1)};" in report
    assert "Twice the steps would bring nothing, or less" in report
    config = json.loads((result.folder / "config.json").read_text())
    assert config["patience"] == 2


def test_a_run_draws_its_curve_and_says_what_twice_the_steps_would_bring(configured: Callable[..., FinetuneRun]) -> None:
    length = TrainConfig(steps=60, batch_size=8, lr=1e-3)
    curved, plain = (
        configured("curved", train=length),
        configured("plain", train=length, loop=LoopConfig(ema=0.0, evaluate_every=60)),
    )
    found = [finetune.run(run).folder for run in (curved, plain)]
    events = [read_journal(folder / "journal.jsonl") for folder in found]
    assert [series(one, "val/top1", "evaluate").steps for one in events] == [[12, 24, 36, 48, 60], [60]]
    assert weights(found[0]) == weights(found[1])  # to look changes nothing
    assert json.loads((found[0] / "config.json").read_text())["loop"]["evaluate_every"] == 0
    gain = outlook(events[0], "val/top1", 12).gain
    report, other = ((folder / "report.html").read_text() for folder in found)
    assert f"Twice the steps would bring about {gain}.".replace("+", "&#43;") in report.replace("+", "&#43;")
    assert "is not said: it takes 4 evaluations, and the run had 1 " in other


def test_patience_chooses_how_often_to_evaluate(configured: Callable[..., FinetuneRun]) -> None:
    found = FinetuneFacts(
        images=24, side=16, imbalance=1.0, width=96, depth=4, patch=8, image_size=None, crop_share=0.875, device="cpu"
    )
    run = configured("x", train=TrainConfig(steps=60, batch_size=8, lr=1e-3), patience=2)
    assert choose(run, found)[0].loop.evaluate_every == 3
    assert choose(replace(run, patience=None), found)[0].loop.evaluate_every == 0
