"""The commands and Python blocks of README and docs, and a tiny world in which they can be run.

A block that takes too long to run, or needs what a test has not, is preceded by a comment that the reader does not see:

    <!-- not run: needs a second machine -->

Its commands are then only parsed, and its Python only compiled.
"""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.verbs import VERBS

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n\n?)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
INDENTED = re.compile(r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n\n?)?^    (?P<text>beitkit .*)$", re.MULTILINE)
INLINE = re.compile(r"`((?:beitkit) [a-z][^`]*)`")
LOOP = re.compile(r"^for (\w+) in ([^;]+); do (.+?); done$")
RECORDS = ("results.md", "performance.md", "method.md", "robustness.md", "architecture.md")
"""Pages that say what was measured and where code is: their commands ran once, in full, and are not what a reader copies."""

SMALL = ["--device", "cpu", "--threads", "1", "--workers", "0"]
IMAGES = ["--image-size", "32"]
STEP = ["--steps", "1", "--batch-size", "2"]
NETWORK = ["--size", "nano", "--patch", "8"]
TINY: dict[str, list[str]] = {
    "tokenizer": [*IMAGES, *SMALL],
    "tokenize": ["--patch", "8", *IMAGES, *SMALL],
    "pretrain": [*NETWORK, *IMAGES, *STEP, *SMALL],
    "finetune": [*IMAGES, *STEP, *SMALL],
    "segment": [*IMAGES, *STEP, *SMALL],
    "plan": [*NETWORK, *IMAGES],
    "probe": SMALL,
    "evaluate": SMALL,
    "predict": SMALL,
    "embed": ["--block", "2", *SMALL],
    "audit": ["--workers", "0"],
    "show": ["--count", "2", "--gallery", "4", *SMALL],
    "run": ["--budget", "1s", *SMALL],
    "verdict": ["--labels", "4", "--seeds", "0", "--no-floors", *IMAGES, *STEP, *SMALL],
    "ablate": ["--finetune-steps", "1", *NETWORK, *IMAGES, *STEP, *SMALL],
}
"""Settings of a verb that take the place of a page's: the words are tried, not the numbers."""
IN_PLACE_OF: dict[str, set[str]] = {"--steps": {"--epochs"}}
"""What a tiny setting rules out."""


WITHIN_A_TINY_IMAGE = {"queries": ((1, 1), (2, 3))}
"""Arguments of Python whose values have to fit to 4x4 patches."""


class Snippet(NamedTuple):
    """A block of a page."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run, if it is not."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README and every page of docs/ that tells a reader what to type."""
    found = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "guide").glob("*.md"),
        *(ROOT / "docs" / "concepts").glob("*.md"),
    ]
    return sorted(page for page in found if page.name not in RECORDS)


def snippets(page: Path, root: Path = ROOT) -> list[Snippet]:
    """The blocks of a page that hold commands or Python, in their order."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(root))
    found = []
    for match in FENCE.finditer(text):
        language = match["language"] or ("bash" if re.search(r"^(for .*do )?beitkit ", match["text"], re.MULTILINE) else "")
        if language in ("bash", "python"):
            found.append(Snippet(name, text.count("\n", 0, match.start("text")), language, match["text"], match["reason"]))
    for match in INDENTED.finditer(FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)):
        line = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text).count("\n", 0, match.start("text"))
        found.append(Snippet(name, line, "bash", match["text"], match["reason"]))
    return sorted(found, key=lambda snippet: snippet.line)


def commands(text: str) -> list[list[str]]:
    """The commands of a block as lists of words; loops are unrolled."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = " ".join(shlex.quote(word) if "$" not in word else word for word in shlex.split(line, comments=True))
        loop = LOOP.match(re.sub(r"\s+#.*$", "", line.strip()))
        if loop:
            name, values, body = loop.groups()
            found += [shlex.split(re.sub(rf"\${name}\b", value, body)) for value in values.split()]
        elif words and not line.startswith("#"):
            found.append(shlex.split(words))
    return found


def verb_and_arguments(words: list[str]) -> list[str] | None:
    """What follows `beitkit`, whatever starts it (torchrun, srun); None for another program."""
    if "beitkit" not in words or words[0] in ("pip", "docker"):
        return None
    return words[words.index("beitkit") + 1 :]


def tiny(arguments: list[str]) -> list[str]:
    """A command of a page with tiny settings in place of its own."""
    arguments = _without(arguments, {"--devices"})  # one process, as where a page says torchrun
    verb = arguments[0]
    settings = list(TINY.get(verb, []))
    if verb == "tokenizer":
        settings += (
            ["--kmeans.vocabulary", "8", "--kmeans.stride", "8", "--kmeans.patches", "64", "--kmeans.iterations", "2"]
            if "kmeans" in arguments
            else [*STEP, "--dvae.vocabulary", "8", "--dvae.stride", "8", "--dvae.hidden", "16", "--dvae.codebook-dim", "8"]
        )
    if (verb == "pretrain" and "--init" in arguments) or (verb == "verdict" and "scratch" not in arguments):
        settings = _without(settings, {"--size", "--patch"})
    if (verb == "finetune" and "--size" in arguments) or (verb == "verdict" and "--size" in arguments):
        settings += NETWORK
    if verb == "verdict" and arguments[1].startswith("scenes"):
        settings = _without(settings, {"--labels"})
    if verb in ("evaluate", "finetune") and "--image-size" not in arguments and "--scratch" not in arguments:
        settings = _without(settings, {"--image-size"})
    if verb == "embed" and "--block" not in arguments:
        settings = _without(settings, {"--block"})
    if "--views" in arguments:
        settings += ["--views", "2"]
    if verb == "segment" and "--recipe" in arguments:
        settings += ["--optim.warmup-steps", "0"]
    if verb == "probe" and "--protocol" in arguments:
        settings += ["--epochs", "1", "--batch-size", "2"]
    if "--queries" in arguments:
        settings += ["--queries", "1", "1", "2", "3"]
    if "--train-blocks" in arguments:
        settings += ["--train-blocks", "last:1"]
    if "--log" in arguments and not find_spec(arguments[arguments.index("--log") + 1]):
        arguments = _without(arguments, {"--log"})
    given = {word for word in settings if word.startswith("--")}
    replaced = given.union(*(IN_PLACE_OF.get(option, set()) for option in given))
    return [*_without(arguments, replaced), *settings]


def _without(words: list[str], options: set[str]) -> list[str]:
    """Words without some options and their values."""
    kept, is_dropped = [], False
    for word in words:
        if word.startswith("--"):
            is_dropped = word.partition("=")[0] in options
        if not is_dropped:
            kept.append(word)
    return kept


def run(*arguments: object) -> None:
    """A command in this process; an error of it is an error here."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    assert stopped.value.code == 0, f"beitkit {' '.join(map(str, arguments))}: exit code {stopped.value.code}"


def outputs(arguments: list[str]) -> list[str]:
    """What a command writes, as far as it says so."""
    said = [after for word, after in itertools.pairwise(arguments) if word == "--out"]
    return said or [f"runs/{arguments[0]}"]


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def world_in(folder: Path) -> Path:
    """`make_world` from within the folder, which is returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world(folder)
    return folder


def make_world(folder: Path) -> None:
    """What the pages call photos/, labeled/, scenes/, runs/pre and so on, tiny."""
    generator = np.random.default_rng(0)

    def image(path: str, size: int = 32) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)).save(folder / path)

    for index in range(8):
        image(f"photos/{index}.png")
        image(f"new/{index}.png")
        for part in ("train", "val"):
            for name in ("cat", "dog"):
                image(f"labeled/{part}/{name}/{index}.png")
        image(f"scenes/images/{index}.png")
        (folder / "scenes/masks").mkdir(parents=True, exist_ok=True)
        mask = np.repeat(np.repeat(generator.integers(0, 2, (4, 4), np.uint8), 8, 0), 8, 1)
        Image.fromarray(mask).save(folder / f"scenes/masks/{index}.png")
    image("cat.jpg")
    image("photos/cat.jpg")
    image("street.jpg")
    tokenizer = beitkit.DiscreteVAE(DVAEConfig(vocabulary=8, stride=8, hidden=16, codebook_dim=8))
    for name in ("runs/tok", "encoder.pkl", "dalle"):
        beitkit.save(tokenizer, folder / name)
    start = ["--model", "runs/pre"]
    run(*tiny(["pretrain", "photos", "--tokenizer", "runs/tok", "--out", "runs/pre"]))
    run(*tiny(["finetune", "labeled", *start, "--out", "runs/cls"]))
    run(*tiny(["finetune", "labeled", *start, "--scratch", "--out", "runs/scratch"]))
    run(*tiny(["segment", "scenes", *start, "--out", "runs/seg"]))
    for name, run_folder in (
        ("cont", "pre"),
        ("seed-0", "cls"),
        ("seed-1", "scratch"),
        ("pretrain-1000-0", "cls"),
        ("scratch-1000-0", "scratch"),
    ):
        shutil.copytree(folder / "runs" / run_folder, folder / "runs" / name)
    for name in (
        "beit",
        "beit_base_patch16_224_pt22k",
        "beit_base_patch16_224_pt22k_ft22k",
        "mae_pretrain_vit_base",
        "dino_vitbase16_pretrain",
    ):
        beitkit.convert(folder / "runs/pre", to="microsoft", out=folder / f"{name}.pth")
    if find_spec("onnx") and find_spec("onnxruntime"):
        run("export", "--model", "runs/cls", "--format", "onnx", "--out", "cls.onnx")
    shutil.copytree(folder / "photos", folder / "in1k")
    shutil.copytree(folder / "scenes", folder / "ade20k")


class _Tiny(ast.NodeTransformer):
    """Calls of verbs with tiny settings."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name.startswith("beitkit.") and (verb := name.removeprefix("beitkit.").replace("_", "-")) in VERBS:
            words = TINY.get(verb, [])
            values = {key[2:].replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)}
            values |= {key: value for key, value in WITHIN_A_TINY_IMAGE.items() if key in {word.arg for word in node.keywords}}
            dropped = {*values, "epochs"} if "steps" in values else {*values}
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in dropped]
            node.keywords += [
                ast.keyword(key, ast.Constant(int(value) if str(value).isdigit() else value)) for key, value in values.items()
            ]
        return node


def run_python(text: str, given: dict[str, Any]) -> None:
    """A block of Python with tiny settings, in a namespace that holds what pages take for granted."""
    tree = ast.fix_missing_locations(_Tiny().visit(ast.parse(text)))
    exec(compile(tree, "snippet", "exec"), given)
