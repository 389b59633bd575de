"""A life cycle in a process that may not reach any other machine, nor look one up, nor be reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PROGRAM = """
import sys
def guard(event, arguments):
    if event == "socket.getaddrinfo" or event in ("socket.connect", "socket.bind") and not isinstance(arguments[1], (str, bytes)):
        raise RuntimeError(f"{event} {arguments[1:]}")  # the names of local sockets, by which readers hand over batches, are text
sys.addaudithook(guard)
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except RuntimeError:
    print("guarded")
from beitkit.cli import main
for command in open(sys.argv[1]):
    try:
        main(command.split())
    except SystemExit as stopped:
        assert stopped.code == 0, command
"""


def test_no_verb_opens_a_socket(tmp_path: Path) -> None:
    for index in range(16):
        path = tmp_path / "images" / ("train" if index < 12 else "val") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(path)
    where = str(tmp_path)
    assert " " not in where
    common = "--steps 2 --batch-size 2 --threads 1 --device cpu --image-size 16"
    commands = [
        f"tokenizer {where}/images --out {where}/tok --dvae.vocabulary 8 --dvae.hidden 8 --dvae.stride 4 {common}",
        f"pretrain {where}/images --tokenizer {where}/tok --out {where}/pre --size nano --patch 4 --workers 1 {common}",
        f"finetune {where}/images --model {where}/pre --out {where}/cls --read.cache 0 --workers 1 {common}",
        f"evaluate {where}/images --model {where}/cls --out {where}/eval --threads 1 --device cpu",
        f"predict {where}/images/val --model {where}/cls --out {where}/p.csv --threads 1 --device cpu",
        f"convert {where}/pre --to huggingface --out {where}/hf",
    ]
    (tmp_path / "commands").write_text("\n".join(commands))
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "commands"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("guarded")
    assert (tmp_path / "p.csv").exists()
