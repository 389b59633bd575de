"""The ablation end to end on shapes, its arithmetic, and what each variant changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import beitkit
from beitkit.cli import main
from beitkit.configs.codec import to_json
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.errors import UserError
from beitkit.runs.ablate.config import AblateRun
from beitkit.runs.ablate.run import ROWS, finetune_run, pretrain_run

SMALL = {"size": "nano", "image_size": 16, "patch": 4, "steps": 2, "finetune_steps": 2, "batch_size": 4}
MACHINE = {"threads": 1, "device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gray images of two classes, and a gray tokenizer of stride 2."""
    folder = tmp_path_factory.mktemp("world")
    for index in range(24):
        image = Image.new("L", (16, 16), 30)
        draw = ImageDraw.Draw(image)
        (draw.ellipse if index % 2 else draw.rectangle)((3, 2 + index % 4, 10, 9 + index % 4), fill=220)
        path = folder / "images" / ("train" if index < 16 else "val") / ("square", "disk")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    torch.manual_seed(0)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=8, stride=2, hidden=16, codebook_dim=8, channels=1)), folder / "tok")
    return folder


def test_two_variants_end_to_end_and_continued(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ablate"
    command = ["ablate", str(world / "images"), str(world / "images"), "--tokenizer", str(world / "tok"), "--out", str(out)]
    command += ["--variants", "pixels", "full", "--seeds", "3", "5"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, **MACHINE}.items()]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "ablate.json").read_text())
    assert found["seeds"] == [3, 5]
    assert list(found["variants"]) == ["full", "pixels", "from scratch"]
    for name, folder in (("full", "full"), ("pixels", "pixels"), ("from scratch", "scratch")):
        row = found["variants"][name]
        runs = [json.loads((out / "finetune" / f"{folder}-{seed}" / "result.json").read_text()) for seed in (3, 5)]
        assert row["top1"] == [run["top1"] for run in runs]
        assert all(run["scratch"] == (name == "from scratch") for run in runs)
        assert row["mean"] == pytest.approx(sum(row["top1"]) / 2)
        assert row["spread"] == pytest.approx(abs(row["top1"][0] - row["top1"][1]) / 2**0.5)
        assert row["paper"] == ROWS[name][1]
        assert f"{100 * row['mean']:.1f}%" in printed
        assert f"{100 * row['paper']:.2f}%" in printed
    assert "-1.82" in printed  # the paper's 81.04 against 82.86
    assert printed.splitlines()[-1].startswith(f"done: {out}")
    html = (out / "report.html").read_text()
    assert "Accuracy after fine-tuning" in html
    assert "points here" in html
    for variant in ("full", "pixels"):
        model = beitkit.load(out / "pretrain" / variant)
        assert isinstance(model, beitkit.MaskedImageModel)
        assert model.config.backbone.channels == 1
        assert (model.config.vocabulary is None) == (variant == "pixels")

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/model.safetensors")}
    rows = beitkit.ablate(
        world / "images", world / "images", tokenizer=world / "tok", out=out, variants=("pixels", "full"), seeds=(3, 5),
        **SMALL, **MACHINE,
    )  # fmt: skip
    assert [row.name for row in rows] == ["full", "pixels", "from scratch"]
    assert list(rows[1].top1) == found["variants"]["pixels"]["top1"]
    assert len(before) == 8
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/model.safetensors")} == before


def test_several_pretrainings_give_the_spread(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "ablate"
    rows = beitkit.ablate(
        world / "images", world / "images", tokenizer=world / "tok", out=out, variants=("full",), seeds=(3, 5),
        pretrain_seeds=(0, 1), network=NetworkConfig(positions="none"), **SMALL, **MACHINE,
    )  # fmt: skip
    full, scratch = rows
    runs = [f"{start}-{seed}" for start in ("full", "full-1") for seed in (3, 5)]
    assert full.top1 == tuple(json.loads((out / "finetune" / run / "result.json").read_text())["top1"] for run in runs)
    first, second = sum(full.top1[:2]) / 2, sum(full.top1[2:]) / 2
    assert full.samples == pytest.approx((first, second))
    assert full.spread == pytest.approx(abs(first - second) / 2**0.5)
    folders = [f"scratch-{seed}" for seed in (3, 5, 0, 1)]  # every seed of either, so that one fine-tuning each has a spread too
    assert scratch.top1 == tuple(json.loads((out / "finetune" / run / "result.json").read_text())["top1"] for run in folders)
    weights = [beitkit.load(out / "pretrain" / name).state_dict() for name in ("full", "full-1")]
    assert weights[0].keys() == weights[1].keys()
    assert not any("relative" in key for key in weights[0])  # what `network` says
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("random-mask", {"mask.kind": "random"}),
        ("pixels", {"target": "pixels", "tokenizer": None, "channels": 3}),
        ("pixels-random-mask", {"target": "pixels", "tokenizer": None, "channels": 3, "mask.kind": "random"}),
        ("recover-all", {"recover": "all"}),
        ("no-mask", {"recover": "all", "mask.kind": "none"}),
    ],
)
def test_a_variant_differs_from_full_by_what_its_name_says(variant, changed: dict) -> None:
    config = AblateRun(Path("photos"), Path("labeled"), tokenizer=Path("tok"))
    full, other = (flat(to_json(pretrain_run(config, name, 3, 0))) for name in ("full", variant))
    assert {key: other[key] for key in full if full[key] != other[key] and key != "out"} == changed


def test_all_starts_are_fine_tuned_alike() -> None:
    config = AblateRun(Path("photos"), Path("labeled"), tokenizer=Path("tok"))
    full, scratch = (flat(to_json(finetune_run(config, name, 1, 0))) for name in ("full", None))
    assert {key for key in full if full[key] != scratch[key]} == {"out", "scratch", "train.lr"}
    assert scratch["train.lr"] is None  # chosen by fine-tuning
    given = flat(to_json(finetune_run(replace(config, scratch_lr=2e-3), None, 1, 0)))
    assert given["train.lr"] == 2e-3


def flat(content: dict, prefix: str = "") -> dict:
    found: dict = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("pixels",)}, "`variants` must name full"),
        ({"seeds": ()}, "`seeds` must name each at most once"),
        ({"seeds": (1, 1)}, "`seeds` must name each at most once"),
        ({"finetune_steps": 0}, "`finetune_steps` must be at least 1, got 0"),
        ({"lr": 0.0}, "`lr` must be positive"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AblateRun(Path("photos"), Path("labeled"), tokenizer=Path("tok"), **options)
