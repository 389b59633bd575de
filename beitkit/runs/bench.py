"""`beitkit bench`: how fast this machine is, with beitkit and with other software, taking turns in one process."""

from __future__ import annotations

import gc
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import beitkit
from beitkit.configs.codec import to_json
from beitkit.configs.model import SizeName
from beitkit.configs.verbs.bench import BenchJob, BenchRun, Rival
from beitkit.measuring import data_path, matrix
from beitkit.measuring.matrix import products_of
from beitkit.measuring.operators import as_text, operators
from beitkit.measuring.race import Race
from beitkit.measuring.races import race_of
from beitkit.measuring.result import VERSION, BenchResult, JobResult, job_result
from beitkit.measuring.turns import interleaved, synchronizer
from beitkit.runs.bench_memory import peak_of
from beitkit.runs.bench_report import print_result, write_page
from beitkit.runs.bench_setup import accelerated, present_rivals, say, workload_of
from beitkit.system import quoted, write_atomically
from beitkit.train.machine.runtime import Runtime, start_runtime


def run(config: BenchRun) -> BenchResult | Path:
    """Time everybody and write the result, or profile ours; returns the result, or where the profile is."""
    runtime = start_runtime(config.machine)
    rivals = present_rivals(config)
    if config.profile:
        return _profile(config, runtime, rivals)
    jobs: list[JobResult] = []
    share: dict[str, float] = {}
    for size in config.size:
        for what in config.what:
            if what == "data":
                jobs += _data(config, size)
                continue
            race = race_of(what, workload_of(config, size), runtime, rivals, accelerated(config, runtime))
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
    for contestant in race.contestants if config.memory else ():
        say(f"memory of {contestant.name}")
        peak = peak_of(config, what, size, contestant.name)
        if peak is not None:
            peaks[contestant.name] = peak
    parities = {rival: difference() for rival, difference in race.parities.items()}
    for rival, difference in parities.items():
        say(f"same network: float32 outputs of {rival} and ours differ by {difference:.1e} of the largest")
    precisions = ("float32",) if runtime.autocast is None else ("bfloat16", "float32")
    products = products_of(workload_of(config, size).masked_config.backbone, config.batch_size, precisions)
    taken = interleaved(
        [*race.contestants, *(matrix.contestant(product, runtime.device) for product in products)],
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
            for race in data_path.races(workload_of(config, size), Path(folder)):
                say(f"{race.job}, one core")
                taken = interleaved(race.contestants, config.rounds, turn=config.turn, say=say)
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
    """The operators of one step of every contestant, in profile.txt."""
    parts = []
    for size in config.size:
        for what in config.what:
            if what == "data":
                continue
            race = race_of(what, workload_of(config, size), runtime, rivals, accelerated(config, runtime))
            for contestant in race.contestants:
                say(f"profiling: {race.job}, {contestant.name}")
                title = f"{race.job}, {size}/{config.patch} at {config.image_size}, batch {config.batch_size}: {contestant.name}"
                parts.append(as_text(title, operators(contestant, runtime.device)))
    path = config.out / "profile.txt"
    text = f"{runtime.describe()}, PyTorch {torch.__version__}\n\n" + "\n".join(parts)
    write_atomically(path, text.encode())
    print(f"written: {quoted(path)}, what takes the time of a step")
    return path
