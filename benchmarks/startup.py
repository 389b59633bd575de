"""How long verbs take that train nothing, each in a new process: this state, and the state before, in turns.

    python -m benchmarks.startup [--before ../before] [--rounds 5] [--size base]

The network is one of random weights (BEiT-B/16, 1,000 classes), the image a gray one of 224 pixels. Stated are medians of the
rounds, by the clock and by the processor (user and system), and their ratios. The first row is `import torch` and nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.predict import BEFORE, OURS, alone_in_turns, make_model, print_head, print_rows

VERBS = {
    "--help": [],
    "pretrain --help": [],
    "recipes": [],
    "doctor": [],
    "plan --images 100000 --device h100": [],
    "inspect": ["MODEL"],
    "show-load": ["MODEL"],
    "predict": ["IMAGE", "--model", "MODEL"],
}
"""What follows each verb; MODEL and IMAGE stand for paths."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="base")
    options = parser.parse_args()
    checkouts = {OURS: Path.cwd()} | ({} if options.before is None else {BEFORE: options.before})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(options.size, 224, folder)
        paths = {"MODEL": str(folder / "native"), "IMAGE": str(make_image(folder / "image.png"))}
        commands = {
            verb: ["-m", "beitkit", *verb.split(), *(paths.get(word, word) for word in words)] for verb, words in VERBS.items()
        }
        print(f"{options.size}, {options.rounds} rounds\n")
        print_head(f"s, ratio to {OURS}", of="command")
        for what, command in {"import torch": ["-c", "import torch"], **commands}.items():
            print_rows(f"`{what}`", alone_in_turns([sys.executable, "-P", *command], checkouts, options.rounds), 1.0)


def make_image(path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (224, 224), "gray").save(path)
    return path


if __name__ == "__main__":
    main()
