"""Training state on disk: written whole or not at all, checked when read, the last ones kept.

A checkpoint is two files, `step-00000500.pt` and `step-00000500.json`; the second names the size and digest of the first
and is written after it. A file whose note is missing or does not match is passed over, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from beitkit.errors import UserError
from beitkit.system import write_atomically

KEEP = 2
"""How many checkpoints stay: the newest, and the one before it in case the newest is torn."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, then remove the oldest ones and what a killed run left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:08d}.pt"
        write_atomically(target, lambda file: torch.save(state, file))
        note = {"step": step, "bytes": target.stat().st_size, "blake2b": _digest(target)}
        write_atomically(target.with_suffix(".json"), json.dumps(note).encode())
        for old in self._newest_first()[KEEP:]:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
        for torn in self.folder.glob("*.tmp"):
            torn.unlink()

    def restore(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None for a run that has not saved yet.

        Raises:
            UserError: if there are checkpoints and none of them is whole.
        """
        candidates = self._newest_first()
        for path in candidates:
            if _is_whole(path):
                return torch.load(path, map_location="cpu", weights_only=True)
        if candidates:
            raise UserError(
                f"none of the {len(candidates)} checkpoints in {self.folder} is whole; remove that folder to start anew"
            )
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        note = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(note, dict) and note.get("bytes") == path.stat().st_size and note.get("blake2b") == _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
