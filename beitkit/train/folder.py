"""Run folder: config, environment, journal, checkpoints and results.

The same command in the same folder resumes the run; a different command is an error, and nothing is overwritten. Only rank 0
writes; the other ranks wait for it, then read.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL
import torch

from beitkit.configs.codec import NOT_PART_OF_A_RUN, flat, to_json
from beitkit.errors import GIVEN, UserError, few, writing_to
from beitkit.files import MOST_OWN, read_json, read_regular, why
from beitkit.system import append, write_atomically
from beitkit.terminal import tell
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.journal import say_skipped
from beitkit.train.machine.processes import ALONE, Processes
from beitkit.version import __version__

LOCK = ".lock"
NETWORK = "network.json"
"""What is trained, written when the run begins (`runs.training.unfinished`)."""
CONTENTS = "contents.npy"
"""What the image files held when the run began (`runs.training.contents`)."""
OWN_IMAGES = "own images"
"""In `inputs.json`, what a caller's dataset is known by (`data.own.images`), whichever of its items are trained on."""
DONE = "done.json"
"""Written last: only a folder that has it, and the model, is finished."""
LEFT_OVER = (
    LOCK,
    CONTENTS,
    NETWORK,
    *("config.json", "environment.json", "inputs.json", "start.json", "speed.json"),
    *("split.csv", "scenes.csv", "classes.json", "broken_files.jsonl"),
)
"""Files that alone do not make a run."""


class RunFolder:
    """The folder of one run: created or checked on start, and locked while the process lives."""

    def __init__(self, path: Path, verb: str, config: Any, processes: Processes = ALONE) -> None:
        """Create the folder or open it to resume; collective.

        Raises:
            UserError: if the folder holds another command's run or other files, cannot be created, is in use by another run,
                or is not the same on all ranks.
        """
        self.path = path
        self.processes = processes
        self.journal = path / "journal.jsonl"
        """The event log."""
        self.checkpoints = Checkpoints(path / "checkpoints", processes)
        self.best = path / "checkpoints" / "best"
        """Folder of the best model by the evaluations."""
        self.broken_list = path / "broken_files.jsonl"
        """List of unreadable files, one JSON object per line."""
        if processes.is_main:
            self._open(verb, config)
        processes.barrier()
        seen = processes.all_gather((path / "config.json").exists())
        if not all(seen):
            raise UserError(
                f"process {seen.index(False)} does not see `out` {path.absolute()}; choose a folder on a disk that all "
                "machines share"
            )

    def _open(self, verb: str, config: Any) -> None:
        path = self.path
        wanted = {"verb": verb, **to_json(config)}
        recorded = path / "config.json"
        holds_something = path.is_dir() and not all(_is_left_over(entry) for entry in path.iterdir())
        if recorded.exists() and holds_something:
            _refuse_other(path, _read(recorded), wanted)
        elif holds_something or (path.exists() and not path.is_dir()):
            what = "is not empty and holds no run" if path.is_dir() else "is a file"
            raise UserError(f"`out` {path} {what}; choose another `out`, or remove it yourself")
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = locked(path)
            for left in path.glob("*.tmp"):  # by a run that was killed while it wrote
                left.unlink()
            if not holds_something:  # a start that came to nothing binds nobody: the images may have been repaired since
                for name in ("inputs.json", "start.json", "speed.json", CONTENTS, NETWORK, self.broken_list.name):
                    (path / name).unlink(missing_ok=True)
            self.write_json("config.json", wanted)
            self._record_start()

    def pin(self, **inputs: str) -> None:
        """Store digests of the inputs on the first start; compare with them on every other.

        Raises:
            UserError: if an input has changed since the first start.
        """
        for rank, others in enumerate(self.processes.all_gather(inputs)):
            for name, digest in others.items():
                if digest != inputs[name]:
                    raise UserError(
                        f"processes {rank} and {self.processes.rank} differ in the {_in_words(name)} that they read; "
                        "give all machines the same files under the same paths"
                    )
        path = self.path / "inputs.json"
        if not self.processes.is_main:
            return
        if not path.exists():
            self.write_json(path.name, inputs)
            return
        for name, before in _read(path).items():
            if inputs.get(name) != before:
                raise UserError(
                    f"the {_in_words(name)} changed since the run in {self.path} began, so it cannot be continued; "
                    "put the old one back, or choose another `out`"
                )

    def is_finished(self) -> bool:
        """Whether the run ended with its model.

        A `model.json` alone says nothing: it may have been copied here. Runs that began before there was `done.json` have none.
        """
        if not all((self.path / name).is_file() for name in ("model.json", "model.safetensors")):
            return False
        path = self.path / "environment.json"
        marks_end = path.exists() and _read(path).get("marks_end", False)
        return not marks_end or (self.path / DONE).exists()

    def mark_done(self) -> None:
        """The model is written, and with it the run is finished."""
        self.write_json(DONE, {"beitkit": __version__})

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the folder atomically."""
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def note_broken(self, file: Path, reason: str) -> None:
        """Add an unreadable file to the list and report it, once."""
        line = json.dumps({"path": str(file), "reason": reason}) + "\n"
        if line in self._broken_lines():
            return
        say_skipped(file, reason)
        try:
            append(self.broken_list, line.encode())
        except OSError as error:
            tell(f"{self.broken_list} cannot be written ({why(error)})")

    def broken_facts(self) -> list[tuple[str, str]]:
        """For the header of a report: number of unreadable files, if any."""
        count = len(self._broken_lines())
        return [("Unreadable files", f"{count:,}, listed in {self.broken_list.name}")] if count else []

    def _broken_lines(self) -> list[str]:
        if not self.broken_list.exists():
            return []
        return read_regular(self.broken_list, MOST_OWN).decode("utf-8", errors="replace").splitlines(keepends=True)

    def _record_start(self) -> None:
        """Store the environment of the first start and of every resume."""
        if self.is_finished():
            return
        path = self.path / "environment.json"
        first = _read(path) if path.exists() else None
        if first is None:
            self.write_json(path.name, environment() | {"marks_end": True})
        else:
            before = first.get("continued")
            self.write_json(path.name, first | {"continued": [*(before if isinstance(before, list) else []), environment()]})


def environment() -> dict[str, Any]:
    """Versions, machine, git revision and command line."""
    return {
        "command": ["beitkit", *sys.argv[1:]],
        "beitkit": __version__,
        "git": _git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cores": os.cpu_count(),
    }


def _git_revision(root: Path = Path(__file__).parents[2]) -> str | None:
    """Revision of the source tree that is running, if it is one."""
    if not (root / ".git").exists():
        return None
    # `git describe --dirty` rewrites .git/index, whose lock may be in the way of somebody's commit.
    command = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        revision, changed = (
            subprocess.run([*command, *rest], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for rest in (["describe", "--always"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + "-dirty" if changed else revision


def _is_left_over(entry: Path) -> bool:
    """Whether a file is left behind by a start that failed before its first checkpoint."""
    if entry.name == "checkpoints" and entry.is_dir():
        return not any(entry.iterdir())
    return entry.name in LEFT_OVER or entry.suffix == ".tmp"


def locked(path: Path, field: str = "out") -> int:
    """Lock a folder, which messages call `field`, until this process ends, so that two runs do not write to it."""
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(lock, False)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"another process is writing to `{field}` {path}; wait for it, or choose another `{field}`") from None
    return lock


def _in_words(pinned: str) -> str:
    """Name of an input in messages; `inputs.json` calls images pictures."""
    return pinned.replace("pictures", "images")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, MOST_OWN)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({why(error)}); choose another `out`") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not describe a run; choose another `out`")
    return content


def _refuse_other(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    if there.get("verb") != wanted["verb"]:
        raise UserError(f"`out` {path} holds a run of {there.get('verb')!r}, not of {wanted['verb']!r}; choose another `out`")
    before, now = flat(there), flat(wanted)
    differing = [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in NOT_PART_OF_A_RUN and before.get(name) != now.get(name)
    ]
    if differing:
        advice = "give that command again to continue it, or choose another `out`"
        if wanted["verb"] == "pretrain" and (path / "model.json").exists():
            advice = f"it is finished: choose another `out`, with `init` {path} to go on from it"
        if any(str(value).startswith(GIVEN) for value in before.values()) and wanted["verb"] == there["verb"]:
            advice = "it was begun in Python: continue it there with the same objects, or choose another `out`"
        raise UserError(f"`out` {path} holds the run of another command ({few(differing, 3, '; ')}); {advice}")
