"""Agreement and speed of a tokenizer in bfloat16 and float32: figures of docs/performance.md.

    python -m benchmarks.token_precision PHOTOS --tokenizer runs/tok [runs/other ...] [--images 64] [--size 112]

Without --tokenizer: DALL-E's geometry with random weights. Every image is shown as in pre-training (random crop, flip,
color). The two precisions take turns; medians over the batches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from beitkit import DiscreteVAE, load_tokenizer
from beitkit.configs.data import ViewConfig
from beitkit.configs.tokenizer import PUBLISHED_DVAES
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.find import find_images
from beitkit.data.stream import evaluation_stream
from beitkit.data.views.image import PretrainView
from beitkit.system import keep_heap
from beitkit.tokenizers.frozen import Encoder

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--tokenizer", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=112)
    arguments = parser.parse_args()
    keep_heap()  # as every run does
    files = find_images(arguments.photos)
    files = files.subset([index * len(files) // arguments.images for index in range(arguments.images)])
    torch.manual_seed(0)
    tokenizers = {str(path): load_tokenizer(path) for path in arguments.tokenizer} or {
        "DALL-E's geometry, random weights": DiscreteVAE(PUBLISHED_DVAES["dalle"]).eval()
    }
    print("| tokenizer | tokens | codes used | agreement | float32, images/s | bfloat16 | ratio |\n|---|---|---|---|---|---|---|")
    for name, tokenizer in tokenizers.items():
        size = (arguments.size, arguments.size)
        view = PretrainView(ViewConfig(), size, size)
        dataset = ImageDataset(files, view, channels=tokenizer.channels, kind="evaluate")
        precisions = (None, torch.bfloat16)
        encoders = [Encoder.laid_out(tokenizer, precision) for precision in precisions]
        ids: list[list[torch.Tensor]] = [[], []]
        seconds: list[list[float]] = [[], []]
        for batch in evaluation_stream(dataset, BATCH):
            for which, encoder in enumerate(encoders):
                start = time.perf_counter()
                ids[which].append(encoder(batch["token_images"]))
                seconds[which].append((time.perf_counter() - start) / len(batch["index"]))
        exact, fast = (torch.cat(found) for found in ids)
        speeds = [1 / statistics.median(one[1:]) for one in seconds]
        print(
            f"| {name} | {exact.numel():,} | {exact.unique().numel()} | {(exact == fast).float().mean():.2%} | {speeds[0]:.2f} | "
            f"{speeds[1]:.2f} | {speeds[1] / speeds[0]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
