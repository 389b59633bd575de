"""Write requirements-ci.txt: all that `make test` installs besides PyTorch, each file of each package by its hash.

    python tools/lock.py [--upgrade]

Versions that are there stay as long as they fit pyproject.toml; `--upgrade` takes the newest of all. Needs uv (`pip install uv`)
and the package index; installing needs pip alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements-ci.txt"
EXTRAS = ("dev", "docs", "hub", "onnx", "parquet", "ray")
"""Of pyproject.toml, as far as tests use them."""
BESIDE = ("editables", "timm==1.0.31")
"""What hatchling needs to install the clone itself, and a referee in tests, which runs under a stub of torchvision."""
PYTORCH = re.compile(r"torch|torchvision|triton|(nvidia|cuda)-.*")
"""What stays out: builds for CPUs and for CUDA are other files, of other indexes; and what the ones for CUDA bring."""
HEADER = """\
# What `make test` installs besides PyTorch, on Linux and macOS, by Python 3.11 or newer. Made by `make lock`; not edited by hand.
# PyTorch is pinned by its version alone, in constraints.txt: its builds for CPUs and for CUDA are other files, of other indexes,
# so that one set of hashes cannot name it.
"""


def compiled(uv: str, out: Path, *options: str) -> str:
    """What uv resolves, written to `out`, whose versions are kept where they fit."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    beside = "\n".join([*project["build-system"]["requires"], *BESIDE])
    command = [
        *(uv, "pip", "compile", "--quiet", "--no-config", "--no-header", "--universal", "--python-version", "3.11"),
        *("--fork-strategy", "fewest", "--constraint", "constraints.txt", "--output-file", str(out), *options),
        *(word for extra in EXTRAS for word in ("--extra", extra)),
        *("pyproject.toml", "-"),
    ]
    subprocess.run(command, input=beside, text=True, check=True, cwd=ROOT)
    return out.read_text(encoding="utf-8")


def main() -> int:
    """Write the file, and say how many packages are in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    upgrade = ["--upgrade"] * parser.parse_args().upgrade
    uv = shutil.which("uv")
    if uv is None:
        sys.stderr.write("lock: found no uv; pip install uv\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / LOCK.name
        if LOCK.exists():
            shutil.copy(LOCK, out)
        names = re.findall(r"^([\w.-]+)==", compiled(uv, out, *upgrade), re.MULTILINE)
        left_out = [name for name in names if PYTORCH.fullmatch(name)]
        without = [f"--no-emit-package={name}" for name in left_out]
        content = compiled(uv, out, "--generate-hashes", *without)
    LOCK.write_text(HEADER + content, encoding="utf-8")
    sys.stdout.write(f"written: {LOCK.name}, {len(names) - len(left_out)} packages; without {', '.join(left_out)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
