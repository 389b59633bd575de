"""A training step on GPUs that are not at hand, as Markdown tables: computed from counted operations and bytes, not measured.

    python -m benchmarks.computed [--size base] [--batch-size 128]

By GPU, work and what is compiled: milliseconds of a step by what they are spent on, and those in which the host starts kernels
meanwhile; images a second, which the input path must give as well, and the share of the peak that the counted operations come to.
"""

from __future__ import annotations

import argparse

from beitkit.configs.gpus import GPUS
from beitkit.planning.gpu import IN_WORDS, counted, step_seconds_on, tokenizer_seconds_on
from beitkit.planning.workload import Workload as Planned
from benchmarks.compare.workload import TOKENIZER, Workload

COLUMNS = ("step", "GPU", "compiled", "ms", "products", "attention", "others", "update", "host", "images/s", "share of the peak",
           "with tokens computed")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["base"])
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    for size in options.size:
        work = Workload(size=size, image_size=224, patch=16, batch_size=options.batch_size)
        steps = {
            "pre-training": Planned(network=work.masked_config, tokenizer=TOKENIZER, predicted=work.num_masked),
            "fine-tuning": Planned(network=work.classifier_config),
        }
        print(f"{size}/16 at 224, batch {options.batch_size}, bfloat16: computed, not measured\n")
        print(f"| {' | '.join(COLUMNS)} |")
        print(f"|{'---|' * len(COLUMNS)}")
        for name, planned in steps.items():
            found, flops = counted(planned, options.batch_size, recompute=False), planned.flops.step(recompute=False)
            for gpu_name, gpu in GPUS.items():
                tokens = tokenizer_seconds_on(gpu, planned, options.batch_size)
                for form, in_words in IN_WORDS.items():
                    seconds = step_seconds_on(gpu, found, form, planned.parameters)
                    rate = options.batch_size / seconds.total
                    parts = (seconds.total, seconds.products, seconds.attention, seconds.others, seconds.update, seconds.host)
                    cells = " | ".join(f"{1e3 * part:.1f}" for part in parts)
                    computed = f"{options.batch_size / (seconds.total + tokens):,.0f}" if tokens else ""
                    said = f"{rate:,.0f} | {rate * flops / gpu.peak:.0%} | {computed}"
                    print(f"| {name} | {gpu_name.upper()} | {in_words} | {cells} | {said} |")
        print()


if __name__ == "__main__":
    main()
