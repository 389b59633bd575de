"""A life cycle in a process that reaches no other machine, writes only in each command's own folder, and starts no program."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROGRAM = """
import json, os, sys
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NO_FILES = ("/dev/null", "/proc/self/clear_refs")  # the second resets the measured peak of memory
NAMES = {  # where a path is among the arguments of an event, and the folder that it begins in
    "os.mkdir": [(0, 2)], "os.rmdir": [(0, 1)], "os.remove": [(0, 1)], "os.rename": [(0, 2), (1, 3)], "os.link": [(1, 3)],
    "os.symlink": [(1, 2)],
}
CONTENTS = {"os.truncate": [(0, None)], "os.chmod": [(0, 2)], "os.chown": [(0, 3)], "os.utime": [(0, 3)],
            "os.setxattr": [(0, None)], "os.removexattr": [(0, None)]}
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system")
PROGRAMS = ("git", "uname")  # for the revision of a clone; Python asks the second what machine this is
allowed = []

def guard(event, given):
    wrong = ""
    if event == "socket.getaddrinfo" or event in ("socket.connect", "socket.bind") and not isinstance(given[1], (str, bytes)):
        wrong = f"{given[1:]}"  # the names of local sockets, by which readers hand over batches, are text
    elif event in STARTS and given[0] not in PROGRAMS:
        wrong = f"{given[0]}"
    elif event == "open" and not isinstance(given[0], int) and given[2] & WRITES:
        wrong = outside(given[0], None, follow=True)
    elif event in NAMES or event in CONTENTS:
        for path, folder in NAMES.get(event) or CONTENTS[event]:
            if not isinstance(given[path], int):
                wrong = wrong or outside(given[path], None if folder is None else given[folder], follow=event in CONTENTS)
    if wrong:
        os.write(2, f"FORBIDDEN {event} {wrong}\\n".encode())  # the error itself may be handled by somebody
        raise RuntimeError(f"{event} {wrong}")

def outside(path, folder, follow):
    path = os.fsdecode(path)
    if path in NO_FILES:
        return ""
    if folder is not None and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    path = os.path.abspath(path)
    path = os.path.realpath(path) if follow else os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return "" if any(path == one or path.startswith(one + os.sep) for one in allowed) else path

def seen(room, *but):
    '''When each file and folder of the room last changed, those of some folders aside.'''
    return {str(path): path.lstat().st_ctime_ns for path in [room, *room.rglob("*")] if not {path, *path.parents} & {*but}}

sys.addaudithook(guard)
import socket, subprocess
room = Path(sys.argv[1])
temporary, compiled = room / "tmp", room / "torch"
for forbidden in (
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: (room / "a").write_text(""),
    lambda: os.open(room / "commands", os.O_RDWR),
    lambda: (room / "images").rename(room / "b"),
    lambda: (room / "images").chmod(0o777),
    lambda: os.rmdir("cwd", dir_fd=os.open(room, os.O_RDONLY)),
    lambda: subprocess.run(["true"]),
):
    try:
        forbidden()
    except RuntimeError:
        print("guarded")
os.write(2, b"BEGIN\\n")
from beitkit.cli import main
for name, arguments in json.loads((room / "commands").read_text()):
    own = room / "out" / name
    allowed[:] = [str(own), str(temporary), str(compiled)]
    before = seen(room, own, compiled)
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == 0, arguments
    after = seen(room, own, compiled)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {str(own.parent), str(temporary)}, (name, changed)  # these two hold new names, or held them
    assert not list(temporary.iterdir()), name
print("done")
"""
SMALL = "--threads 1 --device cpu"
STEPS = f"--steps 2 --batch-size 2 --image-size 16 {SMALL}"
COMMANDS = {
    "tok": f"tokenizer images --out OUT --dvae.vocabulary 8 --dvae.hidden 8 --dvae.stride 4 {STEPS}",
    "tokens": f"tokenize images --tokenizer out/tok --out OUT --views 2 --image-size 16 --patch 4 {SMALL}",
    "pre": f"pretrain images --tokenizer out/tok --out OUT --size nano --patch 4 --views 2 --workers 1 {STEPS}",
    "replay": "replay out/pre --step 2",
    "probe": f"probe images --model out/pre --protocol official --epochs 1 {SMALL}",
    "cls": f"finetune images --model out/pre --out OUT --read.cache 0 --workers 1 {STEPS}",
    "seg": f"segment scenes --model out/pre --out OUT --workers 0 {STEPS}",
    "evaluate": f"evaluate images --model out/cls --out OUT {SMALL}",
    "predict": f"predict images/val --model out/cls --out OUT/p.csv {SMALL}",
    "masks": f"predict a.tar --model out/seg --out OUT {SMALL}",
    "embed": f"embed images/val --model out/pre --out OUT/f.npy {SMALL}",
    "show": f"show images/val --model out/pre --out OUT/sheet.html --count 2 --gallery 4 {SMALL}",
    "audit": "audit images --out OUT --workers 0",
    "index": "index images --out OUT/x.index",
    "pack": "pack a.tar --out OUT",
    "convert": "convert out/pre --to huggingface --out OUT",
    "export": "export --model out/cls --format native --out OUT",
    "compare": "compare out/pre out/cls --out OUT/c.html",
    "inspect": "inspect out/cls",
    "show-load": "show-load out/cls",
    "plan": "plan --images 100 --size nano --image-size 16 --patch 4",
}
"""Commands in the order in which they are given; OUT is a folder of each one's own, and all that it may write."""


def lay_out(room: Path) -> None:
    """Images of two classes, scenes, an archive whose names lead out of any folder, and folders that stay empty."""
    for name in ("out", "cwd", "home", "tmp", "torch", "scenes/images", "scenes/masks"):
        (room / name).mkdir(parents=True)
    for index in range(16):
        path = room / "images" / ("train" if index < 12 else "val") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.random.default_rng(index).integers(0, 255, (16, 16, 3)).astype(np.uint8))
        image.save(path)
        image.save(room / "scenes" / "images" / f"{index:02d}.png")
        mask = np.arange(16, dtype=np.uint8)[:, None] // 8 + np.zeros((1, 16), dtype=np.uint8)
        Image.fromarray(mask).save(room / "scenes" / "masks" / f"{index:02d}.png")
    (room / "scenes" / "classes.json").write_text(json.dumps({"names": ["a", "b"]}))
    content = (room / "images" / "val" / "a" / "12.png").read_bytes()
    with tarfile.open(room / "a.tar", "w") as archive:
        for name in ("../../x.png", str(room / "cwd" / "y.png"), "deep/../../../z.png"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name is short: of a local socket, by which readers hand over batches, it may have 108 bytes at most."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


@pytest.mark.timeout(900)  # 21 verbs
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names beside an open folder are looked up in /proc")
def test_no_verb_connects_or_writes_elsewhere_or_starts_a_program(short_path: Path) -> None:
    room = short_path / "room"
    lay_out(room)
    places = {name: str(room / name) for name in ("images", "scenes", "a.tar", "out")}
    commands = []
    for name, command in COMMANDS.items():
        words = command.replace("OUT", f"out/{name}").split()
        found = [word.split("/")[0] in places for word in words]
        commands.append((name, [str(room / word) if known else word for word, known in zip(words, found, strict=True)]))
    (room / "commands").write_text(json.dumps(commands))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
        **{"HOME": str(room / "home"), "TMPDIR": str(room / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])},
        "TORCHINDUCTOR_CACHE_DIR": str(room / "torch"),  # which PyTorch makes, whether it compiles or not
    }
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM, room],
        cwd=room / "cwd", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("guarded\n" * 7)
    assert done.stdout.endswith("done\n")
    assert "FORBIDDEN" not in done.stderr.partition("BEGIN\n")[2]
    assert (room / "out" / "predict" / "p.csv").exists()
