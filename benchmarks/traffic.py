"""Bytes that a training step of each image reads and writes, by category, as a Markdown table: counted, nothing is computed.

    python -m benchmarks.traffic [--size base] [--batch-size 8] [--precision bfloat16]

Forward and backward pass of pre-training, tokens given, and of fine-tuning, as they are without a compiler.
"""

from __future__ import annotations

import argparse

import torch

from beitkit.contracts import autocast_type
from beitkit.planning.traffic import Count, Traffic
from beitkit.planning.workload import CPU, without_content
from beitkit.planning.workload import Workload as Planned
from benchmarks.compare.workload import Workload


def counted(planned: Planned, images: int, precision: torch.dtype | None) -> dict[str, Count]:
    """Of a forward and a backward pass over this many images."""
    with without_content(planned.objective) as objective:
        batch = planned.batch(images, CPU)
        objective.train()
        with Traffic() as traffic:
            with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
                loss = objective(batch, 0.0).total
            loss.backward()
    return traffic.categories | {"all": Count(0, traffic.bytes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    work = Workload(size=options.size, image_size=224, patch=16, batch_size=options.batch_size)
    steps = {
        "pre-training": Planned(network=work.masked_config, predicted=work.num_masked),
        "fine-tuning": Planned(network=work.classifier_config),
    }
    found = {name: counted(step, options.batch_size, autocast_type(options.precision)) for name, step in steps.items()}
    print(f"{options.size}/16 at 224, batch {options.batch_size}, {options.precision}: GB of a step (operations)\n")
    print(f"| category | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for category in found["pre-training"]:
        cells = [
            f"{by[category].bytes / 1e9:.2f}" + (f" ({by[category].calls})" if by[category].calls else "")
            for by in found.values()
        ]
        print(f"| {category} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
