"""Bytes that a training step of each image reads and writes, by category, as a Markdown table: counted, nothing is computed.

    python -m benchmarks.traffic [--size base] [--batch-size 8] [--precision bfloat16] [--passes 1]

A step of pre-training, tokens given, and one of fine-tuning, from the forward pass to the update of weights, as they are
without a compiler. To see what a change of the code does, run it in a worktree of the commit before too (benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import itertools

import torch

from beitkit.configs.train import OptimConfig
from beitkit.contracts import autocast_type
from beitkit.planning.traffic import Count, Traffic
from beitkit.planning.workload import CPU, without_content
from beitkit.planning.workload import Workload as Planned
from beitkit.train.machine.runtime import Runtime, StopRequest
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import Schedule
from beitkit.train.step import Trainer
from benchmarks.compare.workload import Workload


def counted(planned: Planned, images: int, precision: torch.dtype | None, passes: int) -> dict[str, Count]:
    """Of a step of this many passes, each over this many images."""
    with without_content(planned.objective) as objective:
        vars(objective)["to"] = lambda device: objective  # it is there, and tensors without content cannot be swapped
        trainer = Trainer(
            objective.train(),
            parameter_groups(objective, 0.05),
            schedule=Schedule(2, 0, passes * images, 2.0, 1e-3, 1e-3, seed=0),
            optim=OptimConfig(clip=3.0),
            runtime=Runtime(CPU, precision),
            accumulation_steps=passes,
        )
        stream, stop = itertools.repeat(planned.batch(images, CPU)), StopRequest()

        def step(done: int) -> Traffic:
            with Traffic() as traffic:
                losses = trainer.forward_backward(stream, done)
                trainer.update(losses, trainer.clip(), done, stop)
            return traffic

        step(0)  # which makes the moments
        traffic = step(1)
    return traffic.categories | {"all": Count(0, traffic.bytes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--passes", type=int, default=1, help="forward passes of a step, whose gradients are added up")
    options = parser.parse_args()
    work = Workload(size=options.size, image_size=224, patch=16, batch_size=options.batch_size)
    steps = {
        "pre-training": Planned(network=work.masked_config, predicted=work.num_masked),
        "fine-tuning": Planned(network=work.classifier_config),
    }
    precision = autocast_type(options.precision)
    found = {name: counted(step, options.batch_size, precision, options.passes) for name, step in steps.items()}
    passes = f", {options.passes} passes a step" if options.passes > 1 else ""
    print(f"{options.size}/16 at 224, batch {options.batch_size}, {options.precision}{passes}: GB of a step (operations)\n")
    print(f"| category | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for category in found["pre-training"]:
        cells = [
            f"{by[category].bytes / 1e9:.2f}" + (f" ({by[category].calls})" if by[category].calls else "")
            for by in found.values()
        ]
        print(f"| {category} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
