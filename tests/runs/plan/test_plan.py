"""`beitkit plan`: what it says for recipes and options, on this machine and on hardware that is described."""

import json
from pathlib import Path

import pytest
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError
from benchmarks import bench
from benchmarks.compare.config import BenchRun

DESCRIBED = {"tflops": 100.0, "share": 0.5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer that is quickly traced."""
    path = tmp_path_factory.mktemp("tokenizer")
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=30, hidden=16)), path)
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_a_recipe_on_described_hardware_follows_from_closed_forms(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--recipe", "pretrain-base-in22k", "--images", "14_000_000", "--gpus", "16", "--tflops", "100",
                "--share", "0.5", "--price", "2", "--json")  # fmt: skip
    plan = json.loads(text)
    values = {(figure["part"], figure["name"]): figure["value"] for figure in plan["figures"]}
    assert values["length", "steps"] == round(150 * 14_000_000 / 2048)
    assert values["length", "images a step"] == 2048
    assert values["length", "passes a step, each device"] == 2
    images = values["length", "steps"] * 2048
    training = values["the run", "training"] + values["the run", "tokenizing"]
    assert training == pytest.approx(images * (107.98e9 + 52.12e9), rel=1e-3)
    assert plan["seconds"] == pytest.approx(training / (16 * 100e12 * 0.5), rel=1e-3)
    assert plan["cost"] == pytest.approx(2 * 16 * plan["seconds"] / 3600)
    assert all(figure["source"] for figure in plan["figures"])
    assert any("exchange" in note for note in plan["notes"])


def test_stored_views_are_tokenized_once(tokenizer: str) -> None:
    always, twice, never = (
        beitkit.plan(
            images=1000, size="nano", tokenizer=tokenizer, epochs=8.0, batch_size=50, **DESCRIBED, **more
        ).operations.tokenizing
        for more in ({}, {"views": 2}, {"cached": True})
    )
    assert twice * 4 == always > 0
    assert never == 0


@pytest.mark.parametrize("recipe", ["finetune-base-pt22k", "segment-base-512-from-pt", "pretrain-v2-base"])
def test_every_kind_of_recipe_is_planned(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--recipe", recipe, "--images", "20000", "--batch-size", "2", "--tflops", "100", "--share", "0.5")
    assert "peak" in text
    verb = recipe.split("-")[0]
    images = {"pretrain": "IMAGES", "finetune": "LABELED", "segment": "SCENES"}[verb]
    assert text.splitlines()[-1].startswith(f"Next: beitkit {verb} {images} --recipe {recipe}")


def test_evaluations_go_forward_once_an_image() -> None:
    """As often as the run will evaluate: five times, as 500 images are few beside its steps; 100,000 are judged at its end."""
    given = {"images": 20_000, "recipe": "finetune-base-in1k", "batch_size": 2, **DESCRIBED}
    without, shown = beitkit.plan(**given), beitkit.plan(**given, validation=500)
    assert without.evaluating == 0
    assert shown.operations.evaluating == 5 * 500 * shown.subject.workload.flops.forward
    many = beitkit.plan(**given, validation=100_000)
    assert many.operations.evaluating == 100_000 * many.subject.workload.flops.forward
    rate = 1e12 * DESCRIBED["tflops"] * DESCRIBED["share"]
    assert shown.evaluating == pytest.approx(shown.operations.evaluating / rate)
    assert shown.seconds == pytest.approx(without.seconds + shown.evaluating)
    assert any("evaluations are left out" in note for note in without.notes())
    assert not any("evaluations" in note for note in shown.notes())


def test_what_does_not_fit_is_said_with_what_would(tokenizer: str) -> None:
    given = {
        "images": 10_000,
        "size": "nano",
        "precision": "float32",
        "memory": 0.1,
        "gpus": 2,
        "tokenizer": tokenizer,
    } | DESCRIBED
    plan = beitkit.plan(batch_size=32, **given)
    assert plan.fits is False
    smaller = next(line for line in plan.advice if line.startswith("--batch-size"))
    words = smaller.split()
    followed = beitkit.plan(batch_size=int(words[1]), accumulate=int(words[3]), **given)
    assert followed.fits
    assert followed.subject.length.images_per_step == plan.subject.length.images_per_step
    both = beitkit.plan(batch_size=32, recompute=True, sharding="full", **given).advice
    assert len(both) == 1  # nothing is left to add but a smaller batch
    assert "--recompute" not in both[0]


def test_an_exchange_takes_its_bytes(tokenizer: str) -> None:
    plan = beitkit.plan(images=10_000, size="nano", tokenizer=tokenizer, gpus=4, bandwidth=1.0, **DESCRIBED)
    assert plan.step.exchange == pytest.approx(2 * 3 / 4 * 4 * plan.subject.workload.parameters / 1e9)


def test_a_gpu_that_is_not_here_is_computed(tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--images", "10_000", "--size", "nano", "--batch-size", "8", "--tokenizer", tokenizer]
    text = said(capsys, *given, "--device", "h100", "--price", "2")
    assert "H100, compiled as a whole; planned in bfloat16" in text
    assert "computed, not measured" in text
    plan = beitkit.plan(images=10_000, size="nano", batch_size=8, tokenizer=tokenizer, device="a100")
    assert plan.limit == 80 * 2**30
    assert plan.seconds == pytest.approx(plan.subject.length.steps * plan.step.total + plan.evaluating)
    assert plan.step.network > plan.step.update > 0
    with pytest.raises(UserError, match=r"`device` and `tflops` both say how fast"):
        beitkit.plan(images=10_000, device="a100", **DESCRIBED)
    with pytest.raises(UserError, match=r"`device` is computed for bfloat16 alone"):
        beitkit.plan(images=10_000, device="a100", precision="float32")


def test_rates_are_read_from_what_bench_writes(tmp_path: Path) -> None:
    tiny = {"size": ("nano",), "image_size": 32, "batch_size": 1, "rounds": 2, "turn": 0.0, "against": (), "memory": False}
    machine = MachineConfig(precision="float32", threads=1)
    bench.run(BenchRun(what=("pretraining",), out=tmp_path, machine=machine, **tiny))
    written = json.loads((tmp_path / "bench.json").read_text())
    rate, share = written["matrix_rate"]["float32"], written["share"]
    options = {"images": 1000, "size": "nano", "precision": "float32", "rates": tmp_path / "bench.json"}
    plan = beitkit.plan(**options)
    assert plan.device == written["device"]
    workload, length = plan.subject.workload, plan.subject.length
    training = length.images * workload.flops.step(recompute=False) / (rate * share["pretraining"])
    alone = next(one for one in written["jobs"][0]["contestants"] if one["name"] == "tokenizer")
    tokens = length.images / alone["images_per_second"] * (14 / 2) ** 2  # 224 pixels where the bench had 32
    assert plan.step.total * length.steps == pytest.approx(training + tokens)
    assert beitkit.plan(**options, share=0.5).step.network == pytest.approx(plan.step.network * share["pretraining"] / 0.5)
    with pytest.raises(UserError, match="which share of the rate finetune reaches"):
        beitkit.plan(images=10_000, recipe="finetune-base-in1k", precision="float32", rates=options["rates"])
    with pytest.raises(UserError, match="matrix_rate of bfloat16"):
        beitkit.plan(**options | {"precision": "bfloat16"})


def test_this_machine_is_measured(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    text = said(capsys, "--images", "100", "--size", "nano", "--image-size", "32", "--batch-size", "4", "--steps", "3",
                "--threads", "1", "--tokenizer", tokenizer, "--patch", "16",
                "--image-folder", str(tmp_path), "--workers", "0", "--json")  # fmt: skip
    plan = json.loads(text)
    measured = {figure["name"] for figure in plan["figures"] if figure["source"] == "measured here now"}
    assert {"forward and backward", "tokenizer", "waiting for images", "update", "process, Python and torch"} <= measured
    assert plan["seconds"] > 3 * plan["step_seconds"] > 0
    assert plan["fits"] is True


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"images": 0}, "`images` must be at least 1, got 0"),
        ({"images": 9, "tflops": 1.0}, "`share`, such as 0.4"),
        ({"images": 9, "share": 0.5}, "`tflops` or `rates`"),
        ({"images": 9, "sharding": "full"}, "`gpus`"),
        ({"images": 9, "epochs": 1.0, "steps": 1}, "`epochs` or `steps`"),
        ({"images": 9999, "gpus": 3, "accumulate": 4, **DESCRIBED}, "`accumulate` 3"),
        ({"images": 9, "recipe": "pretrain-base"}, "did you mean"),
        ({"images": 9999, "recipe": "finetune-base-in1k", "views": 2, **DESCRIBED}, "`views` is for pretrain"),
        ({"images": 9999, "validation": 9, **DESCRIBED}, "`validation` is for finetune and segment"),
        ({"images": 9, "tokenizer": "dale", **DESCRIBED}, "`tokenizer` must be one of dalle, beit, or"),
        ({"images": 9, **DESCRIBED}, "`batch_size` 64 is more than there are images"),
    ],
)
def test_a_mistake_is_one_line(options: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as raised:
        beitkit.plan(**options)
    assert "\n" not in str(raised.value)
