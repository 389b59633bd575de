"""Images a second of the pre-training step as batch, resolution, depth and processes grow, as Markdown tables.

    python -m benchmarks.scaling [--size base] [--batch-size 8] [--rounds 3] [--threads 0] [--only batch ...]

Within a table all take turns in one process (`benchmarks.compare.turns`); tokens are given. The processes of the last table
(gloo, one thread each) cannot take turns with others: they are started anew for each number, and one process of one thread is
their reference. The precision is the machine's own choice.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from statistics import median

import torch

from beitkit.configs.train import MachineConfig, SpeedConfig
from beitkit.contracts import precision_name
from beitkit.planning.workload import network_flops
from beitkit.train.machine.runtime import Runtime, start_runtime
from benchmarks.compare.matrix import best_rates, candidate, products_of
from benchmarks.compare.ours import CACHED, OurNetworks, pretraining
from benchmarks.compare.turns import Candidate, interleaved, synchronizer
from benchmarks.compare.workload import Workload

BATCHES, RESOLUTIONS, DEPTHS, PROCESSES = (1, 4, 8, 16), (224, 384, 512), (12, 24), (1, 2)
FIRST = "growing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=("batch", "resolution", "depth", "processes"))
    parser.add_argument("--one-of", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    usual = Workload(size=options.size, image_size=options.image_size, patch=options.patch, batch_size=options.batch_size)
    runtime = start_runtime(MachineConfig(threads=options.threads))
    if options.one_of:
        one_of_several(usual, runtime, options.rounds)
        return
    print(
        f"{options.size}/{options.patch}, {runtime.describe()}, PyTorch {torch.__version__}; medians of {options.rounds} rounds"
    )
    tables = {
        "batch": [(f"{count} images", replace(usual, batch_size=count)) for count in BATCHES],
        "resolution": [(f"{side}x{side}", replace(usual, image_size=side)) for side in RESOLUTIONS],
        "depth": [(f"{depth} blocks", replace(usual, depth=depth)) for depth in DEPTHS],
    }
    for what in options.only or [*tables, "processes"]:
        if what == "processes":
            processes(options)
        else:
            grown(what, tables[what], runtime, options.rounds)


def grown(what: str, rows: list[tuple[str, Workload]], runtime: Runtime, rounds: int) -> None:
    """One table, whose rows take turns with each other and with matrix products."""
    precision = precision_name(runtime.autocast)
    products = products_of(rows[0][1].masked_config.backbone, 8, [precision])
    racing = [Candidate(name, "", step_of(workload, runtime), is_ours=True) for name, workload in rows]
    racing += [candidate(product, runtime.device) for product in products]
    taken = interleaved(racing, rounds, turn=1.0, wait=synchronizer(runtime.device))
    rate = best_rates(products, taken)[precision]
    print(f"\n| {what} | images/s | GFLOP/image | share of {rate / 1e9:.0f} GFLOP/s |\n|---|---|---|---|")
    for name, workload in rows:
        flops = network_flops(workload.masked_config, workload.num_masked).step(recompute=False)
        speed = workload.batch_size / median(taken[name])
        print(f"| {name} | {speed:.3g} | {flops / 1e9:.3g} | {speed * flops / rate:.0%} |", flush=True)


def step_of(workload: Workload, runtime: Runtime):
    """What prepares our step with tokens given."""
    return next(one for one in pretraining(OurNetworks(workload, runtime), runtime, SpeedConfig()) if one.name == CACHED).prepare


def processes(options: argparse.Namespace) -> None:
    """The last table: the same batch in each of several processes of one thread."""
    print("\n| processes, one thread each | images/s | of so many times one |\n|---|---|---|")
    alone = 0.0
    for count in PROCESSES:
        speed = together(options, count)
        alone = alone or speed
        print(f"| {count} | {speed:.3g} | {speed / alone / count:.0%} |", flush=True)


def together(options: argparse.Namespace, count: int) -> float:
    """Images a second of this many processes that average their gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        "--one-of",
        "--size",
        options.size,
        "--image-size",
        str(options.image_size),
    ]
    command += ["--patch", str(options.patch), "--batch-size", str(options.batch_size), "--rounds", str(options.rounds)]
    command += ["--threads", "1"]
    shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"one of {count} processes failed")
    return sum(json.loads(answer.splitlines()[-1]) for answer in answers)


def one_of_several(workload: Workload, runtime: Runtime, rounds: int) -> None:
    """This process's images a second, printed; all processes take their steps together."""
    taken = interleaved([Candidate(FIRST, "", step_of(workload, runtime), is_ours=True)], rounds)[FIRST]
    print(json.dumps(workload.batch_size / median(taken)))


if __name__ == "__main__":
    main()
