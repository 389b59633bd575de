"""Speed of beitkit and other libraries on this machine: candidates take turns in one process.

    python -m benchmarks.bench --what pretraining --against transformers [--size base] [--rounds 5] [--out bench]

Writes bench.json and bench.html; benchmarks/README.md says what is measured and how, `--help` what can be changed.
"""

from __future__ import annotations

import gc
import json
import platform
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch

import beitkit
from beitkit.cli import USAGE_ERROR
from beitkit.command.parse import parse
from beitkit.configs.codec import to_json
from beitkit.configs.model import SizeName
from beitkit.errors import UserError
from beitkit.system import quoted, write_atomically
from beitkit.train.machine.runtime import Runtime, start_runtime
from benchmarks.compare import data_path, matrix
from benchmarks.compare.config import BenchJob, BenchRun, Rival
from benchmarks.compare.matrix import products_of
from benchmarks.compare.memory import peak_of
from benchmarks.compare.operators import as_text, operators
from benchmarks.compare.races import Race, race_of
from benchmarks.compare.report import print_result, write_page
from benchmarks.compare.result import VERSION, BenchResult, JobResult, job_result
from benchmarks.compare.rivals import present_rivals
from benchmarks.compare.turns import interleaved, synchronizer

PROGRAM = "python -m benchmarks.bench"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 done, 1 a file cannot be written, 2 a mistake in the command, 130 stopped by Ctrl-C."""
    try:
        run(parse(BenchRun, sys.argv[1:] if arguments is None else arguments, PROGRAM))
    except UserError as error:
        _fail(str(error), USAGE_ERROR)
    except OSError as error:
        _fail(f"{error.strerror}: {error.filename}", 1)
    except KeyboardInterrupt:
        _fail("stopped at once; nothing more was written", 128 + signal.SIGINT)
    sys.exit(0)


def run(config: BenchRun) -> BenchResult | Path:
    """Time all candidates and write the result, or profile ours; returns the result, or where the profile is."""
    runtime = start_runtime(config.machine)
    rivals = present_rivals(config.against, say)
    if config.profile:
        return _profile(config, runtime, rivals)
    jobs: list[JobResult] = []
    share: dict[str, float] = {}
    for size in config.size:
        for what in config.what:
            if what == "data":
                jobs += _data(config, size)
                continue
            race = race_of(what, config.workload(size), runtime, rivals, config.speed)
            jobs.append(_raced(config, what, size, race, runtime))
            if size == config.size[0]:
                shares = {job: jobs[-1].named(name).share for job, name in race.share_of.items()}
                share |= {job: value for job, value in shares.items() if value is not None}
            del race
            gc.collect()  # networks and their steps refer to each other
    result = _result(config, runtime, rivals, jobs, share)
    write_atomically(config.out / "bench.json", (json.dumps(result.to_json(), indent=2) + "\n").encode())
    write_page(result, config.out / "bench.html")
    if config.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print_result(result)
        print(f"written: {quoted(config.out / 'bench.json')}, and bench.html beside it shows it")
    return result


def _raced(config: BenchRun, what: BenchJob, size: SizeName, race: Race, runtime: Runtime) -> JobResult:
    """Measure memory, check that all have the same network, then let them take turns."""
    say(f"{race.job}, {size}/{config.patch} at {config.image_size}, batch {config.batch_size}: {runtime.describe()}")
    peaks: dict[str, int] = {}
    for candidate in race.candidates if config.memory else ():
        say(f"memory of {candidate.name}")
        peak = peak_of(config, what, size, candidate.name)
        if peak is not None:
            peaks[candidate.name] = peak
    parities = {rival: difference() for rival, difference in race.parities.items()}
    for rival, difference in parities.items():
        say(f"same network: float32 outputs of {rival} and ours differ by {difference:.1e} of the largest")
    precisions = ("float32",) if runtime.autocast is None else ("bfloat16", "float32")
    products = products_of(config.workload(size).masked_config.backbone, config.batch_size, precisions)
    taken = interleaved(
        [*race.candidates, *(matrix.candidate(product, runtime.device) for product in products)],
        config.rounds,
        turn=config.turn,
        wait=synchronizer(runtime.device),
        say=say,
    )
    return job_result(
        race,
        taken,
        products,
        size=size,
        image_size=config.image_size,
        patch=config.patch,
        parity=parities,
        peaks=peaks,
    )


def _data(config: BenchRun, size: SizeName) -> list[JobResult]:
    """The races of the data path, on one core as in a worker."""
    threads = torch.get_num_threads()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        try:
            for race in data_path.races(config.workload(size), Path(folder)):
                say(f"{race.job}, one core")
                taken = interleaved(race.candidates, config.rounds, turn=config.turn, say=say)
                results.append(
                    job_result(race, taken, (), size=size, image_size=config.image_size, patch=config.patch, parity={}, peaks={})
                )
        finally:
            torch.set_num_threads(threads)
    return results


def _result(
    config: BenchRun, runtime: Runtime, rivals: list[Rival], jobs: list[JobResult], share: dict[str, float]
) -> BenchResult:
    best: dict[str, float] = {}
    for job in jobs:
        for name, rate in job.products.items():
            precision = name.rpartition(", ")[2]
            best[precision] = max(best.get(precision, 0.0), rate)
    installed = {name: version(name) for name in ("torch", *rivals)}
    return BenchResult(
        version=VERSION,
        device=runtime.describe(),
        software={"python": platform.python_version(), "beitkit": beitkit.__version__, **installed},
        settings=to_json(config),
        matrix_rate=best,
        share=share,
        jobs=tuple(jobs),
    )


def _profile(config: BenchRun, runtime: Runtime, rivals: list[Rival]) -> Path:
    """The operators of one step of every candidate, in profile.txt."""
    parts = []
    for size in config.size:
        for what in config.what:
            if what == "data":
                continue
            race = race_of(what, config.workload(size), runtime, rivals, config.speed)
            for candidate in race.candidates:
                say(f"profiling: {race.job}, {candidate.name}")
                title = f"{race.job}, {size}/{config.patch} at {config.image_size}, batch {config.batch_size}: {candidate.name}"
                parts.append(as_text(title, operators(candidate, runtime.device)))
    path = config.out / "profile.txt"
    text = f"{runtime.describe()}, PyTorch {torch.__version__}\n\n" + "\n".join(parts)
    write_atomically(path, text.encode())
    print(f"written: {quoted(path)}, what takes the time of a step")
    return path


def say(line: str) -> None:
    """Tell on stderr how far it is; stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> NoReturn:
    say(f"bench: {message}")
    sys.exit(code)


if __name__ == "__main__":
    main()
