"""Plans of `beitkit plan` against real runs of `beitkit pretrain`: peak memory of the process, and seconds of a step.

    python benchmarks/plan.py PHOTOS [--threads 2] [--case tiny/8/float32 ...] [--geometry light|dalle]

A case is SIZE/BATCH/PRECISION at --image-size. Plan and run are separate processes, one after the other, on the same photographs.
The run's step is the median of its logged steps without the first two. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from beitkit import DiscreteVAE, save
from beitkit.configs.model import PUBLISHED_DVAES, DVAEConfig

CASES = ("tiny/8/float32", "tiny/32/bfloat16", "small/16/float32", "small/16/bfloat16", "base/8/float32", "base/8/bfloat16")
WITH_PEAK = """
import resource, sys
from beitkit.cli import main
try:
    main(sys.argv[1:])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--case", nargs="+", default=CASES)
    parser.add_argument("--geometry", choices=("light", "dalle"), default="light")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=64, help="photographs that are used")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    print("| case | planned GiB | real GiB | ratio | planned s a step | real s a step | ratio |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for path in sorted(options.photos.glob("*.jpg"))[: options.pictures]:
            (folder / "photos" / path.name).symlink_to(path.resolve())
        config = DVAEConfig() if options.geometry == "light" else PUBLISHED_DVAES["dalle"]
        save(DiscreteVAE(config), folder / "tokenizer")
        for case in options.case:
            size, batch, precision = case.split("/")
            shared = ["--size", size, "--batch-size", batch, "--precision", precision, "--image-size", str(options.image_size)]
            shared += ["--steps", str(options.steps), "--threads", str(options.threads), "--workers", "0"]
            shared += ["--tokenizer", str(folder / "tokenizer")]
            compare(case, folder, shared, options.pictures)


def compare(case: str, folder: Path, shared: list[str], pictures: int) -> None:
    photos, out = folder / "photos", folder / case.replace("/", "-")
    planned = json.loads(output("plan", "--images", str(pictures), "--pictures", str(photos), *shared, "--json").splitlines()[0])
    printed = output("pretrain", str(photos), "--out", str(out), *shared, "--loop.log-every", "1")
    peak = int(printed.split("peak ")[-1])
    logged = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    batch = int(case.split("/")[1])
    step = statistics.median([batch / event["images_per_second"] for event in logged if event["kind"] == "train"][2:])
    memory, seconds = planned["peak_bytes"] / peak, planned["step_seconds"] / step
    print(
        f"| {case} | {planned['peak_bytes'] / 2**30:.2f} | {peak / 2**30:.2f} | {memory:.2f} "
        f"| {planned['step_seconds']:.3f} | {step:.3f} | {seconds:.2f} |",
        flush=True,
    )


def output(*arguments: str) -> str:
    """What a command prints, its peak memory in the last line."""
    done = subprocess.run([sys.executable, "-c", WITH_PEAK, *arguments], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"beitkit {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
