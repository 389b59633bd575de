"""Peak memory of labeling a large image: the figures of docs/guide/segment.md.

    python -m benchmarks.label_memory

Each case runs in a process of its own, whose resident memory before and at most during the labeling is compared. The network is
small (nano/16 at 512 pixels, fresh weights, 150 classes), so what is measured is the scores, not the network.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

CASES = {
    "4472x4472, short side 512 (official)": (4472, 4472, {}),
    "4472x1500 (tall), windows at the image's own size": (4472, 1500, {"short_side": 1500}),
}
CLASSES = 150


def measure(name: str) -> None:
    """One case, in this process."""
    import torch

    from beitkit.configs.model import BackboneConfig, SegmenterConfig
    from beitkit.configs.segmentation import InferenceConfig
    from beitkit.nn.segmentation.label_map import predict_label_map
    from beitkit.nn.segmentation.segmenter import Segmenter

    height, width, options = CASES[name]
    torch.set_num_threads(1)
    backbone = BackboneConfig.named("nano/16", image_size=512, relative_positions="per_block", final_norm=False)
    classes = tuple(map(str, range(CLASSES)))
    model = Segmenter(SegmenterConfig(backbone=backbone, classes=classes, channels=64, auxiliary_channels=None)).eval()
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    before, start = peak(), time.monotonic()
    predict_label_map(model, image, InferenceConfig(**options))
    plain = height * width * CLASSES * 4 / 2**30
    print(f"| {name} | {peak() - before:.2f} GB | {plain:.1f} GB | {time.monotonic() - start:.0f} s |", flush=True)


def peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """All cases, one process each."""
    print("| image and settings | peak above start | all scores at once | time, one core |\n|---|---|---|---|", flush=True)
    for name in CASES:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
