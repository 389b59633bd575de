"""The peak memory of one contestant of a bench, in a process of its own: `python -m beitkit.runs.bench_memory REQUEST`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.model import SizeName
from beitkit.configs.verbs.bench import BenchJob, BenchRun
from beitkit.measuring.memory import peak_bytes
from beitkit.measuring.races import race_of
from beitkit.runs.bench_setup import accelerated, present_rivals, workload_of
from beitkit.system import keep_freed_memory
from beitkit.train.machine.runtime import start_runtime


def peak_of(config: BenchRun, what: BenchJob, size: SizeName, name: str) -> int | None:
    """Bytes that a contestant takes at most above what the imports take; None where they cannot be measured.

    Raises:
        RuntimeError: if the other process failed; says how.
    """
    request = {"config": to_json(replace(config, what=(what,), size=(size,))), "name": name}
    # A session of its own, so that Ctrl-C reaches this process alone, which then ends the other.
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)], capture_output=True, text=True, start_new_session=True
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name!r} failed: {done.stderr.strip() or f'signal {-done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def main(request: str) -> None:
    """Measure, and print the answer as JSON."""
    asked = json.loads(request)
    config = from_json(BenchRun, asked["config"])
    runtime = start_runtime(config.machine)
    race = race_of(
        config.what[0], workload_of(config, config.size[0]), runtime, present_rivals(config), accelerated(config, runtime)
    )
    contestant = next(one for one in race.contestants if one.name == asked["name"])
    keep_freed_memory(contestant.is_ours)
    print(json.dumps({"peak_bytes": peak_bytes(contestant, runtime.device)}))


if __name__ == "__main__":
    main(sys.argv[1])
