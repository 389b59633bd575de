"""Speedup of compiled blocks in training, as a Markdown table: compiled and eager steps take turns in one process.

    python -m benchmarks.compiling [--size tiny small base] [--batch-size 8] [--rounds 5] [--threads 0]

Tokens are given. The last column is how long the first compiled step took beyond a usual one, with an empty compiler cache: what
a run has to win back.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch

from beitkit.configs.train import MachineConfig, SpeedConfig
from beitkit.train.machine.runtime import start_runtime
from benchmarks.compare import ours
from benchmarks.compare.turns import Candidate, Step, interleaved, synchronizer
from benchmarks.compare.workload import Workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=("tiny", "small", "base"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    runtime = start_runtime(MachineConfig(threads=options.threads))
    print(f"{runtime.describe()}, batch {options.batch_size}, PyTorch {torch.__version__}; medians of {options.rounds} rounds\n")
    print("| size | step | as it is, images/s | compiled | ratio | range | first step, s more |\n|---|---|---|---|---|---|---|")
    cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, cache)
    for size in options.size:
        workload = Workload(size=size, image_size=224, patch=16, batch_size=options.batch_size)
        for job, candidates in (("pre-training", ours.pretraining), ("fine-tuning", ours.finetuning)):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=cache)
            first: dict[str, float] = {}
            racing = []
            for mode in ("off", "on"):
                networks = ours.OurNetworks(workload, runtime)
                candidate = candidates(networks, runtime, SpeedConfig(compile=mode))[0]
                racing.append(Candidate(mode, "", timed(candidate.prepare, mode, first), is_ours=True))
            taken = interleaved(racing, options.rounds, turn=2.0, wait=synchronizer(runtime.device))
            plain, compiled = (options.batch_size / median(taken[mode]) for mode in ("off", "on"))
            ratios = sorted(one / other for one, other in zip(taken["off"], taken["on"], strict=True))
            more = first["on"] - median(taken["on"])
            print(
                f"| {size} | {job} | {plain:.3g} | {compiled:.3g} | {compiled / plain:.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} "
                f"| {more:.0f} |",
                flush=True,
            )


def timed(prepare: Callable[[], Step], name: str, first: dict[str, float]) -> Callable[[], Step]:
    """The same, which notes how long the first step took."""

    def prepared() -> Step:
        step = prepare()
        start = time.perf_counter()
        step()
        first[name] = time.perf_counter() - start
        return step

    return prepared


if __name__ == "__main__":
    main()
