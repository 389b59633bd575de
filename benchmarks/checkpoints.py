"""Time of inspecting, dry-running and loading a base-size checkpoint, for docs/interop.md.

    python -m benchmarks.checkpoints

Each step runs in a fresh process; time is what it takes after the imports. The reading row is a
plain read of the same file's bytes. Prints Markdown; medians of REPEATS runs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import beitkit
from beitkit.configs.model import BackboneConfig, MaskedImageModelConfig
from beitkit.nn.models import MaskedImageModel

REPEATS = 1
STEPS = {
    "read": "sum(len(open(file, 'rb').read()) for file in files)",
    "inspect": "inspect_checkpoint(path)",
    "convert --dry-run": "convert(path, 'native', path.with_name('never'), dry_run=True)",
    "load": "beitkit.load(path)",
    "load, task=classify, image_size=384": "beitkit.load(path, task='classify', num_classes=10, image_size=384)",
}
PROGRAM = """
import sys, time
from pathlib import Path
import beitkit
from beitkit.interop.inspect import inspect_checkpoint
from beitkit.interop.save import convert
beitkit.load
path = Path(sys.argv[1])
files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
start = time.perf_counter()
{step}
print(time.perf_counter() - start)
"""


def main() -> None:
    torch.manual_seed(0)
    config = BackboneConfig.named("base/16", mask_token=True, pretrain_init=True)
    model = MaskedImageModel(MaskedImageModelConfig(backbone=config, vocabulary=8192))
    with tempfile.TemporaryDirectory() as folder:
        paths = {"microsoft": Path(folder) / "beit.pth", "huggingface": Path(folder) / "hf", "native": Path(folder) / "native"}
        for name, path in paths.items():
            beitkit.save(model, path, format=name)  # type: ignore[arg-type]
        print("| step | " + " | ".join(paths) + " |\n|---|" + "---|" * len(paths))
        for name, step in STEPS.items():
            cells = [measured(step, path) for path in paths.values()]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def measured(step: str, path: Path) -> str:
    command = [sys.executable, "-c", PROGRAM.format(step=step), str(path)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(REPEATS)]
    return f"{statistics.median(map(float, runs)):.2f} s"


if __name__ == "__main__":
    main()
