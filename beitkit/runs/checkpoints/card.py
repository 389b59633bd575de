"""Model cards: what a model was trained on, with what, how it was judged, and where it should not be trusted.

Everything comes from the run folder. Of paths only the last part is told; what the folder does not record is called not recorded.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beitkit.errors import UserError
from beitkit.files import read_json, read_text
from beitkit.interop.kinds import Network
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.report.journal import read_journal

CARD = "README.md"
MOST_SPLIT = 1 << 30
"""Bytes of a split.csv; a run wrote it."""
START = """---
library_name: beitkit
tags:
- beit
---

# {name}

A BEiT vision Transformer ([arXiv 2106.08254](https://arxiv.org/abs/2106.08254)), trained with beitkit: `beitkit.load("{name}")`.
"""


def write_card(folder: Path, run: Path, model: Network) -> None:
    """Add to the README.md of an exported folder, or make it, what is known of the run that made the model."""
    card = folder / CARD
    before = card.read_text(encoding="utf-8") if card.is_file() else START.format(name=folder.name)
    card.write_text("\n".join([before.rstrip(), "", *sections(run, model)]), encoding="utf-8")


def sections(run: Path, model: Network) -> list[str]:
    """The lines on data, compute, evaluation and limits."""
    config, result, environment = (_object(run / name) for name in ("config.json", "result.json", "environment.json"))
    return [
        *_section("Data", _data(run, config)),
        *_section("Compute", _compute(run, config, environment)),
        *_section("Evaluation", _evaluation(run, result)),
        *_section("Limits", _limits(model, result)),
    ]


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {line}" for line in lines or ["not recorded"]), ""]


def _data(run: Path, config: Mapping[str, Any]) -> list[str]:
    lines = [f"images: `{Path(config['images']).name}`"] if isinstance(config.get("images"), str) else []
    parts = _parts(run / "split.csv")
    if parts:
        lines.append(", ".join(f"{count:,} images to {'validate' if part == 'val' else part}" for part, count in parts.items()))
    if isinstance(config.get("labels"), int):
        lines.append(f"trained on {config['labels']:,} of the labeled images, drawn by the seed")
    for key, what in (("model", "started from"), ("init", "started from"), ("tokenizer", "visual tokens of")):
        if isinstance(config.get(key), str) and not config.get("scratch"):
            lines.append(f"{what} `{Path(config[key]).name}`")
    return [*lines, "license of the images: not recorded"] if lines else []


def _compute(run: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    lines = []
    train = config.get("train")
    if config.get("verb"):
        recipe = f", recipe `{config['recipe']}`" if config.get("recipe") else ""
        seed = f", seed {train['seed']}" if isinstance(train, dict) and "seed" in train else ""
        lines.append(f"`beitkit {config['verb']}` of beitkit {environment.get('beitkit', '(not recorded)')}{recipe}{seed}")
    events = [event for event in _events(run / "journal.jsonl") if event.kind == "train"]
    if events:
        last = events[-1]
        speed = [event.numbers["images_per_second"] for event in events if "images_per_second" in event.numbers]
        rate = f", {sum(speed) / len(speed):,.3g} images a second" if speed else ""
        epochs = f" ({last.numbers['epoch']:.3g} epochs)" if "epoch" in last.numbers else ""
        lines.append(f"{last.step:,} steps{epochs}{rate}")
    if "torch" in environment:
        listed = environment.get("gpus")
        gpus = Counter(map(str, listed if isinstance(listed, list) else []))
        device = ", ".join(f"{count} x {name}" for name, count in gpus.items()) or f"{environment.get('cores', '?')} CPU cores"
        lines.append(f"{device}; torch {environment['torch']}")
    return [*lines, "energy: not measured"] if lines else []


def _evaluation(run: Path, result: Mapping[str, Any]) -> list[str]:
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    lines = [f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value:.4g}" for key, value in numbers.items()]
    evaluated = [event for event in _events(run / "journal.jsonl") if event.kind == "evaluate"]
    if evaluated:
        lines += [f"{key} after step {evaluated[-1].step:,}: {value:.4g}" for key, value in evaluated[-1].numbers.items()]
    return (
        [*lines, "measured once, by the run itself, on its own validation images; other seeds were not part of it"]
        if lines
        else []
    )


def _limits(model: Network, result: Mapping[str, Any]) -> list[str]:
    lines = []
    if isinstance(model, Classifier):
        what = "probabilities of classes that do not exclude each other" if model.config.multilabel else "one of its classes"
        lines.append(f"every image is given {what}, also one that shows none of them")
    if isinstance(model, Segmenter):
        lines.append("every pixel is given one of its classes, also where an image shows none of them")
    if isinstance(model, MaskedImageModel):
        lines.append("it predicts visual tokens of masked patches; it is a start for training, and names nothing in an image")
    if isinstance(model, Classifier) and model.config != model.config.uncalibrated():
        lines.append(
            f"its probabilities were fitted on the images that it was validated on (temperature {model.config.temperature:.4g}), "
            "and are better there than on others: `beitkit evaluate` measures their calibration"
        )
    elif result.keys() & {"top1", "map", "miou"}:
        lines.append("whether its probabilities are right was not looked at: `beitkit evaluate` measures their calibration")
    return [
        *lines,
        "its numbers hold for images like those it was validated on; other cameras, places and times were not tried",
        "what is over-represented, missing or mislabeled in its images is in its answers; no group was looked at by itself",
    ]


def _parts(split: Path) -> dict[str, int]:
    """How many images a stored split has in each part."""
    try:
        rows = csv.DictReader(io.StringIO(read_text(split, most=MOST_SPLIT)))
        counts = Counter(row.get("split") or "" for row in rows)
    except (OSError, ValueError, UserError, csv.Error):
        return {}
    return {part: counts[part] for part in ("train", "val", "test") if counts[part]}


def _events(journal: Path) -> list[Any]:
    return read_journal(journal) if journal.is_file() else []


def _object(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote; empty where there is none, as in the files of others."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
