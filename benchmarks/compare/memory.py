"""Peak memory of a candidate in a process of its own: `python -m benchmarks.compare.memory REQUEST`."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.model import SizeName
from beitkit.system import keep_heap, peak_resident_bytes, reset_peak_memory, resident_bytes
from beitkit.train.machine.runtime import start_runtime
from benchmarks.compare.config import BenchJob, BenchRun
from benchmarks.compare.races import race_of
from benchmarks.compare.rivals import present_rivals
from benchmarks.compare.turns import WARM_UP_STEPS, Candidate

ROOT = Path(__file__).parents[2]
"""Of the repository: where `benchmarks` can be imported."""


def peak_of(config: BenchRun, what: BenchJob, size: SizeName, name: str) -> int | None:
    """Bytes that a candidate takes at most above what the imports take; None where they cannot be measured.

    Raises:
        RuntimeError: if the other process failed; says how.
    """
    request = {"config": to_json(replace(config, what=(what,), size=(size,))), "name": name}
    command = [sys.executable, "-m", "benchmarks.compare.memory", json.dumps(request)]
    # A session of its own, so that Ctrl-C reaches this process alone, which then ends the other.
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name!r} failed: {done.stderr.strip() or f'signal {-done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def peak_bytes(candidate: Candidate, device: torch.device) -> int | None:
    """Most memory during some steps: allocated on a GPU, or resident on Linux above what it was before; None elsewhere.

    What making the candidate takes does not count (reading a checkpoint holds its weights several times).
    """
    if device.type == "cuda":
        step = candidate.prepare()
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM_UP_STEPS):
            step()
        return torch.cuda.max_memory_allocated(device)
    before = resident_bytes()
    if device.type != "cpu" or before is None:
        return None
    step = candidate.prepare()
    gc.collect()
    reset_peak_memory()
    for _ in range(WARM_UP_STEPS):
        step()
    peak = peak_resident_bytes()
    return None if peak is None else peak - before


def main(request: str) -> None:
    """Measure, and print the answer as JSON."""
    asked = json.loads(request)
    config = from_json(BenchRun, asked["config"])
    runtime = start_runtime(config.machine)
    race = race_of(config.what[0], config.workload(config.size[0]), runtime, present_rivals(config.against), config.speed)
    candidate = next(one for one in race.candidates if one.name == asked["name"])
    keep_heap(candidate.is_ours)
    print(json.dumps({"peak_bytes": peak_bytes(candidate, runtime.device)}))


if __name__ == "__main__":
    main(sys.argv[1])
