"""From JPEG files to a table of predictions: this state, the state before, and transformers, in turns.

    python -m benchmarks.predict PHOTOS [--before ../before] [--size base] [--images 48] [--rounds 5] [--first]

PHOTOS is a folder of photographs, from which JPEGs of 500x375 and 4000x3000 pixels are made. All read one network of random
weights (BEiT-B/16, 1,000 classes) from its folder and predict what is in a folder of images: ours by
`beitkit.predict(..., out=TABLE)`, `--before` the same in a worktree of another commit (benchmarks/README.md), transformers by its
processor for Pillow and its model, in batches of 64 under autocast. Each has a process of its own, which waits while the others
have their turn. Stated are medians of the rounds, by the clock and by the processor (user and system, which other load changes
less), and ratios of medians. `--first` measures a first prediction instead: `beitkit predict IMAGE --model MODEL`, a new process
each time.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from beitkit.configs.model import SizeName

SIZES = {"500x375": (500, 375), "4000x3000": (4000, 3000)}
BATCH = 64
SERVE, READY = "--serve", "ready"
OURS, BEFORE, TRANSFORMERS = "ours", "before", "transformers"


class Taken(NamedTuple):
    """Seconds of a turn."""

    clock: float
    processor: float


class Server:
    """A process that does the work when it is told."""

    def __init__(self, who: str, model: Path, checkout: Path) -> None:
        command = [sys.executable, "-P", str(Path(__file__).resolve()), SERVE, who, str(model)]
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self._answer() != READY:
            raise SystemExit(f"{who} does not start: {' '.join(command)}")

    def take(self, images: Path) -> Taken:
        """Predict what is in a folder."""
        assert self._process.stdin is not None
        print(images, file=self._process.stdin, flush=True)
        return Taken(*map(float, self._answer().split()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    if SERVE in sys.argv:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--size", default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", action="store_true")
    options = parser.parse_args()
    checkouts = {OURS: Path.cwd()} | ({} if options.before is None else {BEFORE: options.before})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(options.size, options.image_size, folder)
        for size, pixels in SIZES.items():
            make_images(options.photos, folder / size, pixels, 1 if options.first else options.images)
        if options.first:
            first(folder, checkouts, options.rounds)
        else:
            race(folder, checkouts, options.rounds, options.images)


def race(folder: Path, checkouts: dict[str, Path], rounds: int, images: int) -> None:
    """Print a table for whole folders."""
    servers = {who: Server(who, folder / "native", checkout) for who, checkout in checkouts.items()}
    servers[TRANSFORMERS] = Server(TRANSFORMERS, folder / "hub", Path.cwd())
    print(f"{images} images, {rounds} rounds\n")
    print_head(f"ms an image, ratio to {OURS}")
    for size in SIZES:
        for server in servers.values():
            server.take(folder / size)  # the first one reads files from the disk
        taken = {who: [] for who in servers}
        for _ in range(rounds):
            for who, server in servers.items():
                taken[who].append(server.take(folder / size))
        print_rows(size, taken, 1000 / images)
    for server in servers.values():
        server.close()


def first(folder: Path, checkouts: dict[str, Path], rounds: int) -> None:
    """Print a table for one image and one command."""
    print(f"{rounds} rounds\n")
    print_head(f"s, ratio to {OURS}")
    for size in SIZES:
        image = next((folder / size).iterdir())
        command = [sys.executable, "-P", "-m", "beitkit", "predict", str(image), "--model", str(folder / "native")]
        print_rows(size, alone_in_turns(command, checkouts, rounds), 1.0)


def alone_in_turns(command: list[str], checkouts: dict[str, Path], rounds: int) -> dict[str, list[Taken]]:
    """What a command takes in a process of its own, by the checkout that it runs in."""
    taken: dict[str, list[Taken]] = {who: [] for who in checkouts}
    for _ in range(rounds):
        for who, checkout in checkouts.items():
            taken[who].append(run_alone(command, checkout))
    return taken


def run_alone(command: list[str], checkout: Path) -> Taken:
    """Seconds of a command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    return timed(
        lambda: subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        resource.RUSAGE_CHILDREN,
    )


def timed(work: Callable[[], object], whose: int) -> Taken:
    """Seconds that something takes; `whose` processor time, in the words of `resource`."""
    before, start = resource.getrusage(whose), time.perf_counter()
    work()
    clock, after = time.perf_counter() - start, resource.getrusage(whose)
    return Taken(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def print_head(what: str, of: str = "JPEG") -> None:
    print(f"| {of} | who | clock, {what} | processor, {what} |\n|---|---|---|---|")


def print_rows(size: str, taken: dict[str, list[Taken]], factor: float) -> None:
    """A row for each of them."""
    medians = {who: Taken(*map(statistics.median, zip(*turns, strict=True))) for who, turns in taken.items()}
    for who, median in medians.items():
        cells = [f"{value * factor:.3g}, {value / ours:.2f}" for value, ours in zip(median, medians[OURS], strict=True)]
        print(f"| {size} | {who} | {' | '.join(cells)} |", flush=True)


def make_model(size: SizeName, image_size: int, folder: Path) -> None:
    """A classifier of random weights, in our own form and in that of transformers."""
    import beitkit
    from benchmarks.compare.workload import Workload

    model = Workload(size=size, patch=16, image_size=image_size, batch_size=1).classifier()
    beitkit.save(model, folder / "native")
    beitkit.save(model, folder / "hub", format="huggingface")


def make_images(photos: Path, folder: Path, size: tuple[int, int], count: int) -> None:
    """This many JPEGs of (width, height) `size`; photographs come again where there are fewer."""
    from PIL import Image

    folder.mkdir()
    found = sorted(photos.glob("*.jp*g"))
    for number in range(count):
        with Image.open(found[number * len(found) // count if count < len(found) else number % len(found)]) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg", quality=90)


def serve(who: str, model: str) -> None:
    """Wait for folders on stdin; answer each with the seconds that predicting it took."""
    answers = os.fdopen(os.dup(1), "w")  # what the work prints goes where nobody listens
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    predict = by_transformers if who == TRANSFORMERS else by_us
    predict(None, model)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        images = Path(line.strip())
        print(*timed(functools.partial(predict, images, model), resource.RUSAGE_SELF), file=answers, flush=True)


def by_us(images: Path | None, model: str) -> None:
    import beitkit

    if images is None:
        beitkit.predict  # noqa: B018 - imports it
        return
    with tempfile.TemporaryDirectory() as folder:
        beitkit.predict(images, model=model, out=Path(folder) / "predictions.csv")


def by_transformers(images: Path | None, model: str) -> None:
    import torch
    from PIL import Image
    from transformers import BeitForImageClassification
    from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil

    from beitkit.configs.train import MachineConfig
    from beitkit.train.machine.runtime import start_runtime

    runtime = start_runtime(MachineConfig())
    if images is None:
        return
    processor, network = BeitImageProcessorPil.from_pretrained(model), BeitForImageClassification.from_pretrained(model).eval()
    paths = sorted(images.iterdir())
    with Path(os.devnull).open("w") as table:
        for start in range(0, len(paths), BATCH):
            part = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
            with torch.no_grad(), runtime.precision():
                logits = network(**processor(part, return_tensors="pt")).logits
            best = logits.float().softmax(-1).topk(5)
            print(best.values.tolist(), best.indices.tolist(), file=table)


if __name__ == "__main__":
    main()
