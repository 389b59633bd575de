"""A resumable result, written in parts.

Beside the output `new.csv` are `new.csv.command.json`, the key of the command, and, until it is finished, the folder
`new.csv.parts`. Parts are written atomically, and the last file of a part marks it as complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from beitkit.configs.train import MachineConfig
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError
from beitkit.files import read_json
from beitkit.inference.pace import Way
from beitkit.inference.part import OutputFile, Rows
from beitkit.interop.kinds import Network
from beitkit.system import write_atomically
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.train.folder import locked

Setting = str | int | None
WAY = "way.json"


class Written(NamedTuple):
    """Outcome of a command over images."""

    images: int
    unreadable: int
    out: Path | None
    """The files written."""

    @property
    def words(self) -> str:
        """The images and the unreadable ones among them."""
        unreadable = f", {self.unreadable} of them unreadable" if self.unreadable else ""
        return f"{self.images} image{'' if self.images == 1 else 's'}{unreadable}"

    def check(self) -> None:
        """Raise a `UserError` if there are images of which not one can be read."""
        if self.images and self.unreadable == self.images:
            raise UserError(f"none of the {self.images} images can be read; the reasons are named above")


class PartedOutput:
    """The output files of one command, its parts and its key."""

    def __init__(self, tables: Mapping[Path, OutputFile], command: Mapping[str, Setting], parts: int) -> None:
        """Start a result or open it to resume; holds a lock while the process lives.

        `tables` are the files of the result, the last of which the user named; `command` is everything that it depends on.

        Raises:
            UserError: the path holds other files or the parts of another command, or another process is writing to it.
        """
        self._tables = dict(tables)
        self.out = list(tables)[-1]
        self._command = dict(command)
        self.parts = parts
        self._record = self.out.with_name(self.out.name + ".command.json")
        self.folder = self.out.with_name(self.out.name + ".parts")
        """Folder of the parts, until they are joined."""
        self.written = self._recorded()
        if self.written is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.folder)
            self._note(None)

    def missing(self) -> list[int]:
        """The parts still to compute."""
        return [number for number in range(self.parts) if self._counts(number) is None]

    def way(self) -> Way | None:
        """How the parts that are there were computed, where that was found out."""
        try:
            way = Way(**read_json(self.folder / WAY))
        except (OSError, ValueError, TypeError):
            return None
        return way if all(isinstance(value, int) and value > 0 for value in way) else None

    def note_way(self, way: Way) -> None:
        """Have the other parts computed in the same way, also after a stop."""
        write_atomically(self.folder / WAY, json.dumps(way._asdict()).encode())

    def write(self, number: int, part: Rows) -> None:
        """Write a part."""
        for path, table in self._tables.items():
            write_atomically(self._part(number, path), table.encode(part))
        counts = {"pictures": len(part.paths), "unreadable": sum(map(bool, part.errors))}
        write_atomically(self._marker(number), json.dumps(counts).encode())

    def finish(self) -> Written:
        """Join the parts and remove them.

        Raises:
            UserError: no image could be read; nothing is kept.
        """
        counts = [self._counts(number) or (0, 0) for number in range(self.parts)]
        images, unreadable = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
        if images and unreadable == images:
            shutil.rmtree(self.folder)
            self._record.unlink()
            raise UserError(f"none of the {images} images can be read, so nothing was written; the reasons are named above")
        for path, table in self._tables.items():
            parts = [self._part(number, path) for number in range(self.parts)]
            write_atomically(path, lambda file, table=table, parts=parts: table.join(parts, file))
        self._note({"pictures": images, "unreadable": unreadable})
        shutil.rmtree(self.folder)
        return Written(images, unreadable, self.out)

    def _recorded(self) -> Written | None:
        """The outcome, if this command has already finished."""
        is_begun = self.folder.exists() and any(self.folder.glob("part-*.json"))
        if not is_begun and not any(path.exists() for path in self._tables):
            return None
        try:
            record = read_json(self._record)
            command, outcome = dict(record["command"]), record["outcome"]
            counts = None if outcome is None else (int(outcome["pictures"]), int(outcome["unreadable"]))
        except (OSError, ValueError, KeyError, TypeError):
            there = next((path for path in self._tables if path.exists()), self.folder)
            raise UserError(f"`out`: {there} is already there; choose another name, or remove it yourself") from None
        differing = [
            f"{name} was {command.get(name)!r} and is now {self._command.get(name)!r}"
            for name in {**command, **self._command}
            if command.get(name) != self._command.get(name)
        ]
        if differing:
            what = "the parts" if is_begun else "the result"
            raise UserError(
                f"`out` {self.out} holds {what} of another command ({'; '.join(differing)}); choose another name, or remove "
                f"{self.folder if is_begun else self.out}"
            )
        if counts is None or not all(path.exists() for path in self._tables):
            return None
        shutil.rmtree(self.folder, ignore_errors=True)  # left by a process that was killed after it had finished
        return Written(*counts, self.out)

    def _note(self, outcome: dict[str, int] | None) -> None:
        record = {"command": self._command, "outcome": outcome}
        write_atomically(self._record, (json.dumps(record, indent=2) + "\n").encode())

    def _part(self, number: int, path: Path) -> Path:
        return self.folder / f"part-{number:05d}{path.name.removeprefix(self.out.stem)}"

    def _counts(self, number: int) -> tuple[int, int] | None:
        """The images of a part and the unreadable ones among them; None where the part is not complete."""
        try:
            counts = read_json(self._marker(number))
            return int(counts["pictures"]), int(counts["unreadable"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _marker(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.json"


def command_of(
    verb: str, model: Network, files: ImageList, machine: MachineConfig, settings: dict[str, Setting]
) -> dict[str, Setting]:
    """Everything a result depends on: a command only resumes parts with an equal key."""
    return {
        "verb": verb,
        "model": digest_of(model.config, model.state_dict()),
        "inputs": files.digest,
        "pictures": len(files),
        "device": machine.device,
        "precision": machine.precision,
        **settings,
    }


def shard_path(out: Path, number: int, shards: int, *, is_whole: bool) -> Path:
    """The file of a shard: `new-00003-of-00008.csv` for `new.csv`; `out` itself without shards."""
    return out if is_whole else out.with_name(f"{out.stem}-{number:05d}-of-{shards:05d}{out.suffix}")
