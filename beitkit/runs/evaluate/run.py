"""`beitkit evaluate`: measure classifiers, or segmenters, on labeled images, one or several side by side."""

from __future__ import annotations

from pathlib import Path

from beitkit.evaluation.comparison import Evaluation, ModelResult, seed_groups
from beitkit.inference.part import csv_bytes
from beitkit.interop.load import load
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.evaluate.classifiers import classification
from beitkit.runs.evaluate.config import EvaluateRun
from beitkit.runs.evaluate.model_paths import run_config, short_names
from beitkit.runs.evaluate.report import as_json, print_result, write_report
from beitkit.runs.evaluate.segmenters import segmentation
from beitkit.runs.training.own import NONE, OwnParts
from beitkit.system import write_atomically
from beitkit.train.folder import RunFolder
from beitkit.train.journal import say_skipped
from beitkit.train.machine.runtime import start_runtime


def run(config: EvaluateRun, own: OwnParts = NONE) -> Evaluation:
    """Measure, and print tables. `own` are the objects that the config describes."""
    networks = [load(path, image_size=config.image_size) for path in config.model]
    segmenters = [network for network in networks if isinstance(network, Segmenter)]
    images = own.images_or(config.images)
    if len(segmenters) == len(networks):
        prepared = segmentation(config, segmenters, images)
    else:
        prepared = classification(config, networks, images)
    folder = None if config.out is None else RunFolder(config.out, "evaluate", config)
    runtime = start_runtime(config.machine)
    broken: set[Path] = set()

    def note(file: Path, reason: str) -> None:
        if file not in broken:  # several models may read an image, each anew
            broken.add(file)
            say_skipped(file, reason)

    found = prepared.measure(runtime, note)
    models = tuple(map(ModelResult, short_names(config.model), config.model, found.scores))
    result = Evaluation(
        where=prepared.where,
        images=found.images,
        broken=len(broken),
        models=models,
        pairs=found.pairs,
        seeds=seed_groups(models, [run_config(path) for path in config.model]),
    )
    if folder is not None:
        folder.write_json("evaluation.json", as_json(result))
        write_atomically(folder.path / prepared.file, csv_bytes(found.rows))
        write_report(folder.path / "report.html", result, prepared.facts)
    print_result(result)
    kept = "give --out to keep a report" if folder is None else f"written: {config.out} (report.html shows it)"
    print(f"{kept}. Next: {prepared.following}")
    return result
