"""`beitkit predict` for segmenters: mask, colored mask and overlay of every image, and class areas.

    masks/index/NAME.png     class ids, with the classes' colors as the palette: what `beitkit segment` reads as masks
    masks/color/NAME.png     the colors alone
    masks/overlay/NAME.jpg   the image under the colors
    masks/classes.json       names and colors of the ids
    masks/areas.jsonl        a line for each image: share of its pixels and mean probability by class
    masks/sheet.png          some of the images side by side

The line in areas.jsonl is written after an image's files, so that the same command resumes there.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from beitkit.command.following import command, kept
from beitkit.contracts import in_unit_range
from beitkit.data.decoding.decode import Bands, BrokenImage, Encoded
from beitkit.data.decoding.reading import as_tensor, whole_image
from beitkit.data.scenes.scenes import CLASSES_FILE
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError
from beitkit.files import MOST_OWN, parse_json, read_json, read_regular
from beitkit.inference.result import Written, command_of
from beitkit.nn.prediction import ScenePrediction
from beitkit.nn.segmentation.label_map import predict_scene
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.report.images import fit, png_bytes, stacked, to_bytes
from beitkit.report.overlays import colored, legend, overlay
from beitkit.runs.predict.config import PredictRun
from beitkit.runs.predict.parts import images_of, keep
from beitkit.runs.training.own import OwnParts
from beitkit.system import write_atomically
from beitkit.terminal import one_line, print_answer
from beitkit.train.folder import locked
from beitkit.train.machine.runtime import Runtime, start_runtime

ON_SHEET = 8
"""Images on the contact sheet, evenly spread over all."""
SECONDS_PER_LINE = 5.0
"""Time between two lines that say how far it is."""
CELL, ACROSS, GAP = 256, 4, 3
"""Long side in pixels of an image on it, images and overlays in a row, and white pixels around each."""


def predict_scenes(config: PredictRun, model: Segmenter, own: OwnParts) -> Written:
    """Label every image; write a folder, or print what each class covers."""
    if config.engine != "local":
        raise UserError("`engine='ray'` is for classifiers; several machines share the labeling of images by `shard`, 1/n to n/n")
    if config.out is not None and (config.out.suffix or config.out.is_file()):
        raise UserError(f"`out` {config.out} must be a folder for a segmenter's masks and overlays, such as masks/")
    found, files = images_of(config, model, 1, own)
    settings = {"shard": config.shard, "inference": str(config.inference.over(model.config.inference))}
    settled = command_of("predict", model, found, config.machine, settings)
    runtime = start_runtime(config.machine)
    model.to(runtime.device).eval()
    if config.out is None:
        return _print(config, model, runtime, files)
    folder = _Folder(config.out, settled, config.shard, found, model)
    outcome = folder.complete(config, runtime, files)
    after = f"Next: {command('evaluate', 'SCENES', model=config.model, **kept(config, 'inference'))}"
    print(f"written: {config.out} ({outcome.words}; sheet.png shows some). {after}")
    return outcome


class _Folder:
    """The output of one command, and how far it is."""

    def __init__(self, path: Path, command: dict[str, Any], shard: str | None, found: ImageList, model: Segmenter) -> None:
        """Begin or continue.

        Raises:
            UserError: something else lies there, or another command's output, or another process is writing there.
        """
        self.path = path
        self.model = model
        self.names = _names(found)
        self.palette = model.config.colors
        part = "" if shard is None else f"-{shard.replace('/', '-of-')}"
        self.areas = path / f"areas{part}.jsonl"
        record = path / f"command{part}.json"
        if path.is_dir() and any(path.iterdir()) and not any(path.glob("command*.json")):
            raise UserError(f"`out` {path} is not empty and holds no predictions; choose another, or remove it yourself")
        if record.exists() and _recorded(record) != command:
            raise UserError(f"`out` {path} holds the predictions of another command; choose another, or remove it yourself")
        path.mkdir(parents=True, exist_ok=True)
        running = path / f".running{part}"  # shards write side by side
        running.mkdir(exist_ok=True)
        self._lock = locked(running)
        write_atomically(record, (json.dumps(command, indent=2) + "\n").encode())
        names = {"names": list(model.config.classes), "colors": [list(color) for color in self.palette]}
        write_atomically(path / CLASSES_FILE, (json.dumps(names, ensure_ascii=False) + "\n").encode())

    def complete(self, config: PredictRun, runtime: Runtime, files: ImageList) -> Written:
        """Label what is missing, then draw the sheet.

        Raises:
            UserError: not one image can be read.
        """
        done, said = {line["path"]: line for line in self._lines()}, time.monotonic()
        for place in range(len(files)):
            path = files.path(place)
            if str(path) not in done:
                done[str(path)] = self._label(files, place, config, runtime)
                if time.monotonic() - said > SECONDS_PER_LINE or len(done) == len(files):
                    print(f"{len(done)} of {len(files)} images", file=sys.stderr)
                    said = time.monotonic()
        outcome = Written(len(files), sum("error" in line for line in done.values()), self.path)
        outcome.check()
        readable = [place for place in range(len(files)) if "error" not in done[str(files.path(place))]]
        if readable:
            count = min(ON_SHEET, len(readable))
            self._draw_sheet(files, [readable[place * len(readable) // count] for place in range(count)])
        return outcome

    def _label(self, files: ImageList, place: int, config: PredictRun, runtime: Runtime) -> dict[str, Any]:
        name = self.names[str(files.path(place))]
        line = _line(files, place, config, self.model, runtime, lambda *labeled: self._write(name, *labeled))
        with self.areas.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def _write(self, name: str, image: Tensor, prediction: ScenePrediction) -> None:
        index = Image.fromarray(prediction.label_map.numpy())
        index.putpalette([value for color in self.palette for value in color])
        write_atomically(self.path / "index" / f"{name}.png", _encoded(index, "PNG"))
        shown = colored(prediction.label_map, self.palette)
        write_atomically(self.path / "color" / f"{name}.png", png_bytes(shown))
        mixed = to_bytes(overlay(image, prediction.label_map, self.palette)).permute(1, 2, 0).numpy()
        write_atomically(self.path / "overlay" / f"{name}.jpg", _encoded(Image.fromarray(mixed), "JPEG"))

    def _draw_sheet(self, files: ImageList, places: list[int]) -> None:
        """Some images beside their overlays, two pairs a row, below the names of the colors."""
        shown: list[Tensor] = []
        for place in places:
            pixels = in_unit_range(_read(files.source(place), self.model))
            shown.append(_reduced(Image.fromarray(to_bytes(pixels).permute(1, 2, 0).numpy())))
            with Image.open(self.path / "overlay" / f"{self.names[str(files.path(place))]}.jpg") as image:
                shown.append(_reduced(image))
        shown += [torch.ones_like(shown[-1])] * (-len(shown) % ACROSS)
        cells = F.pad(stacked(shown), (GAP, GAP, GAP, GAP), value=1.0)  # (n, 3, h, w)
        rows = [torch.cat(list(row), dim=2) for row in cells.split(ACROSS)]
        names = legend(self.model.config.classes, self.palette, width=rows[0].shape[2])
        write_atomically(self.path / "sheet.png", png_bytes(torch.cat((names, *rows), dim=1)))

    def _lines(self) -> Iterator[dict[str, Any]]:
        """What has been done; a line torn by a kill is cut off, and its image done again."""
        if not self.areas.exists():
            return
        kept = []
        for line in read_regular(self.areas, MOST_OWN).splitlines(keepends=True):
            with suppress(ValueError):
                if line.endswith(b"\n") and _is_done(content := parse_json(line)):
                    kept.append((line, content))
        write_atomically(self.areas, b"".join(line for line, _ in kept))
        yield from (content for _, content in kept)


def _recorded(record: Path) -> object:
    """The command that wrote a folder; None for a record that is none."""
    try:
        return read_json(record)
    except (OSError, ValueError):
        return None


def _is_done(line: object) -> bool:
    """Whether a line says what became of an image."""
    return isinstance(line, dict) and isinstance(line.get("path"), str)


def _read(source: Path | Encoded | Bands, model: Segmenter) -> Tensor:
    """An image at its own size, as the network takes it."""
    return as_tensor(whole_image(source, model.config.backbone.channels, model.config.preprocessing.value_range))


def _print(config: PredictRun, model: Segmenter, runtime: Runtime, files: ImageList) -> Written:
    """Print a line for each image on stdout."""
    unreadable = 0
    for place in range(len(files)):
        line = _line(files, place, config, model, runtime)
        if "error" in line:
            unreadable += 1
        elif config.json:
            print_answer(json.dumps(line))
        else:
            print(f"{line['path']}: {', '.join(f'{name} {share:.1%}' for name, share in line['areas'].items())}")
    outcome = Written(len(files), unreadable, None)
    outcome.check()
    print(f"{outcome.words}. Next: {keep(config, 'masks')}")
    return outcome


def _line(
    files: ImageList,
    place: int,
    config: PredictRun,
    model: Segmenter,
    runtime: Runtime,
    keep: Callable[[Tensor, ScenePrediction], None] = lambda *_: None,
) -> dict[str, Any]:
    """What is said about one image, or why it cannot be read; `keep` is given the image and its prediction."""
    path = files.path(place)
    try:
        image = _read(files.source(place), model)
    except BrokenImage as error:
        print(one_line(f"unreadable: {path}: {error.reason}"), file=sys.stderr)
        return {"path": str(path), "error": error.reason}
    prediction = predict_scene(model, image, config.inference.over(model.config.inference), runtime.precision)
    keep(image, prediction)
    return {"path": str(path)} | _shares(prediction)


def _shares(prediction: ScenePrediction) -> dict[str, dict[str, float]]:
    """Share of the pixels and mean probability of the classes that occur."""
    confidence = {
        name: round(value, 4)
        for name, value in zip(prediction.classes, prediction.confidence.tolist(), strict=True)
        if not math.isnan(value)
    }
    return {"areas": {name: round(share, 6) for name, share in prediction.areas.items()}, "confidence": confidence}


def _names(found: ImageList) -> dict[str, str]:
    """Where each image's files go, below the folder that all images share; without its ending where that is unambiguous.

    Members of archives have their own names there, below the archive's where several archives have the same ones. Items of a
    dataset have their numbers, of as many digits as the last one.
    """
    paths = [found.path(place) for place in range(len(found))]
    if found.items is not None:
        relative = [Path(f"{place:0{len(str(len(found) - 1))}d}") for place in range(len(found))]
    elif found.members is None:
        shared = Path(os.path.commonpath([path.absolute().parent for path in paths]))
        relative = [path.absolute().relative_to(shared) for path in paths]
    else:
        relative = [_below(os.fsdecode(found.name(place))) for place in range(len(found))]
        if len(set(relative)) < len(set(paths)):
            archives = [Path(found.members.archives[number]).stem for number in found.members.archive]
            relative = [archive / path for archive, path in zip(map(Path, archives), relative, strict=True)]
    stems = [str(path.with_suffix("")) for path in relative]
    counts = Counter(stems)
    return {
        str(path): str(inside) if counts[stem] > 1 else stem for path, inside, stem in zip(paths, relative, stems, strict=True)
    }


def _below(name: str) -> Path:
    """A member's name as that of a file below some folder, wherever it would lead itself."""
    return Path(*(part for part in PurePosixPath(name).parts if part not in ("/", "//", ".."))) if name else Path("image")


def _reduced(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An image at the size it has on the sheet."""
    return fit(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255, CELL)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {"optimize": True}))
    return buffer.getvalue()
