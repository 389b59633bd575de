"""Run the installed package through a tiny life cycle on the images that it brings along: `make wheel-check`.

It runs in an environment that has the wheel and what that requires, nothing else: a file that was left out of the wheel, or a
library that only an extra installs, ends it.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.runs.demo.fashion_mnist import load_fashion_mnist

LEFT_OUT = ("transformers", "timm", "onnx", "ray", "pyarrow", "huggingface_hub", "sphinx", "pytest")
"""Without these the package has to do."""
IMAGES = 64
SMALL = ["--batch-size", "8", "--device", "cpu", "--workers", "0"]
STEPS = ["--steps", "2", *SMALL]


def check(folder: Path) -> None:
    """Images, a tokenizer, pre-training, fine-tuning, an evaluation and predictions, of a step or two each."""
    there = Path(beitkit.__file__).parent
    assert "site-packages" in there.parts, f"this is {there}, not the installed package"
    surplus = [name for name in LEFT_OUT if find_spec(name) is not None]
    assert not surplus, f"the environment is not clean: {', '.join(surplus)}"
    data = load_fashion_mnist()
    for index, (image, label) in enumerate(zip(data.train_images[:IMAGES], data.train_labels[:IMAGES], strict=True)):
        path = folder / "images" / data.class_names[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    images, tokens, pretrained, classifier = (str(folder / name) for name in ("images", "tok", "pre", "cls"))
    shape = ["--image-size", "28"]
    codes = [
        "--dvae.vocabulary",
        "8",
        "--dvae.stride",
        "4",
        "--dvae.hidden",
        "16",
        "--dvae.codebook-dim",
        "8",
        "--dvae.channels",
        "1",
    ]
    run("tokenizer", images, "--out", tokens, *codes, *shape, *STEPS)
    run("pretrain", images, "--tokenizer", tokens, "--out", pretrained, "--size", "nano", "--patch", "4", *shape, *STEPS)
    run("finetune", images, "--model", pretrained, "--out", classifier, *STEPS)
    run("evaluate", images, "--model", classifier, *SMALL)
    run("predict", images, "--model", classifier, "--out", str(folder / "predictions.csv"), *SMALL)
    run("recipes")


def run(*arguments: str) -> None:
    """A command in this process."""
    try:
        main([*arguments])
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"beitkit {' '.join(arguments)} ended with code {stop.code}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        check(Path(made))
    sys.stdout.write("the installed package works\n")
