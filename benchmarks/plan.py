"""Plans of `beitkit plan` against real runs: peak memory of the process, seconds of a step, and of the whole training.

    python -m benchmarks.plan PHOTOS [--threads 2] [--case tiny/8/float32/light ...]

A case is SIZE/BATCH/PRECISION/KIND. KIND is the tokenizer of a pre-training (light, or dalle for DALL-E's geometry; both with
random weights), cached for one of light's whose tokens are all stored before, or finetune. Plan and run are separate processes,
one after the other, on the same photographs. A run's step is the median of its logged steps without the first. Its whole is all
of its steps and its evaluation as the journal saw them, without starting, saving and the report. Wants a quiet machine; memory
does not, and --steps 3 suffices for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from beitkit import DiscreteVAE, save
from beitkit.configs.tokenizer import PUBLISHED_DVAES, DVAEConfig

CASES = ("tiny/32/bfloat16/light", "tiny/8/float32/dalle", "small/16/float32/cached", "small/16/bfloat16/light",
         "base/8/bfloat16/light", "base/8/bfloat16/finetune")  # fmt: skip
MEASURED_RUN = """
import sys, time
from beitkit.cli import main
from beitkit.system import peak_resident_bytes
from beitkit.train import loop, step
begun = []
real_step, real_evaluate = step.Trainer.step, loop._evaluate
def timed_step(*given):
    begun.append(time.perf_counter())
    return real_step(*given)
def timed_evaluate(*given):
    real_evaluate(*given)
    print("whole", time.perf_counter() - begun[0])
step.Trainer.step, loop._evaluate = timed_step, timed_evaluate
try:
    main(sys.argv[1:])
finally:
    print("peak", peak_resident_bytes())
"""
"""Runs a command, and prints how long it took from its first step to the end of an evaluation, and its peak memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--case", nargs="+", default=CASES)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--images", type=int, default=64, help="photographs that are used")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    print("| case | planned GiB | real GiB | ratio | planned s a step | real | ratio | planned s in all | real | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, path in enumerate(sorted(options.photos.rglob("*.jpg"))[: options.images]):
            link = folder / "photos" / "ab"[number % 2] / path.name  # two classes, which pre-training does not look at
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        for case in options.case:
            compare(case, folder, options)


def compare(case: str, folder: Path, options: argparse.Namespace) -> None:
    size, batch, precision, kind = case.split("/")
    photos, out = folder / "photos", folder / case.replace("/", "-")
    shared = ["--batch-size", batch, "--precision", precision, "--image-size", str(options.image_size), "--size", size]
    shared += ["--steps", str(options.steps), "--threads", str(options.threads), "--workers", "0"]
    count, aside = len(list(photos.rglob("*.jpg"))), sum(round(0.2 * len(list(part.iterdir()))) for part in photos.iterdir())
    if kind == "finetune":
        recipe = ["--recipe", "scratch-base-in1k"]
        planned = ["plan", "--images", str(count), *recipe, *shared, "--accumulate", "1", "--classes", "2"]
        planned = output([*planned, "--validation", str(aside), "--json"])
        run = ["finetune", str(photos), "--out", str(out), *recipe, *shared, "--loop.accumulate", "1"]
    else:
        tokenizer = tokenizer_of("dalle" if kind == "dalle" else "light", folder)
        shared += ["--tokenizer", str(tokenizer)]
        cached = kind == "cached"
        given = ["--image-folder", str(photos), *(["--cached"] if cached else [])]
        planned = output(["plan", "--images", str(count), *given, *shared, "--json"])
        run = ["pretrain", str(photos), "--out", str(out), *shared]
        if cached:
            store = ["--tokenizer", str(tokenizer), "--views", "1", "--image-size", str(options.image_size)]
            output(["tokenize", str(photos), *store, "--out", str(folder / "tokens")])
            run += ["--tokens", str(folder / "tokens")]
    plan = json.loads(next(line for line in planned.splitlines() if line.startswith("{")))
    printed = output([*run, "--loop.log-every", "1"]).splitlines()
    peak, whole = (
        float(next(line.split()[1] for line in reversed(printed) if line.startswith(name))) for name in ("peak", "whole")
    )
    logged = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    step = statistics.median([int(batch) / event["images_per_second"] for event in logged if event["kind"] == "train"][1:])
    pairs = [(plan["peak_bytes"] / 2**30, peak / 2**30), (plan["step_seconds"], step), (plan["seconds"], whole)]
    columns = [f"{text(ours)} | {text(real)} | {ours / real:.2f}" for ours, real in pairs]
    print(f"| {case} | {' | '.join(columns)} |", flush=True)


def text(value: float) -> str:
    return f"{value:.3g}"


def tokenizer_of(geometry: str, folder: Path) -> Path:
    """A tokenizer with random weights, written when it is first needed."""
    path = folder / f"tokenizer-{geometry}"
    if not path.exists():
        save(DiscreteVAE(DVAEConfig() if geometry == "light" else PUBLISHED_DVAES["dalle"]), path)
    return path


def output(arguments: list[str]) -> str:
    """What a command prints, and what `MEASURED_RUN` says of it."""
    done = subprocess.run([sys.executable, "-c", MEASURED_RUN, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"beitkit {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
