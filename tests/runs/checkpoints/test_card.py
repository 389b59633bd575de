"""Model cards say what the run folder records, and what it does not."""

import json
from dataclasses import replace
from pathlib import Path

import beitkit
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.runs.checkpoints.card import sections, write_card


def model() -> beitkit.Classifier:
    backbone = BackboneConfig.named("nano/16", image_size=32, relative_positions="per_block", final_norm=False)
    return beitkit.Classifier(ClassifierConfig(backbone=backbone, classes=("cat", "dog")))


def test_a_run_is_told(tmp_path: Path) -> None:
    config = {"verb": "finetune", "images": "/home/ada/pets", "model": "/home/ada/runs/pre", "labels": 6, "train": {"seed": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "environment.json").write_text(
        json.dumps({"beitkit": "0.1.0", "torch": "2.13.0", "gpus": ["A", "A"], "cores": 2})
    )
    (tmp_path / "result.json").write_text(json.dumps({"top1": 0.8125, "images": 400, "scratch": False}))
    rows = ['"","cat","class"', *(f'"/{i}.png","cat","{"train" if i < 6 else "val"}"' for i in range(8))]
    (tmp_path / "split.csv").write_text("\n".join(['"path","label","split"', *rows]))
    events = [{"kind": "train", "step": 10 * i, "loss": 1.0, "epoch": i, "images_per_second": 100 * i} for i in (1, 2)]
    (tmp_path / "journal.jsonl").write_text(
        "\n".join(map(json.dumps, [*events, {"kind": "evaluate", "step": 20, "val/top1": 0.8125}]))
    )
    text = "\n".join(sections(tmp_path, model()))
    for expected in (
        "- images: `pets`",
        "- 6 images to train, 2 images to validate",
        "- started from `pre`",
        "- trained on 6 of the labeled images",
        "- `beitkit finetune` of beitkit 0.1.0, seed 3",
        "- 20 steps (2 epochs), 150 images a second",
        "- 2 x A; torch 2.13.0",
        "- top1: 0.8125",
        "- val/top1 after step 20: 0.8125",
        "every image is given one of its classes",
    ):
        assert expected in text
    assert "whether its probabilities are right was not looked at" in text
    fitted = model()
    fitted.config = replace(fitted.config, temperature=0.75)
    assert "fitted on the images that it was validated on (temperature 0.75)" in "\n".join(sections(tmp_path, fitted))
    assert "/home" not in text
    assert "scratch" not in text


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    text = "\n".join(sections(tmp_path / "file.pth", model()))
    assert text.count("- not recorded") == 3
    (tmp_path / "out").mkdir()
    write_card(tmp_path / "out", tmp_path / "file.pth", model())
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: beitkit\n")
    assert "\n# out\n" in card
    assert card.endswith(text)
