"""Training state on disk: written whole or not at all, checked when read, the last ones kept.

A checkpoint is what each process wrote of it, `step-00000500.0.safetensors` and so on, and `step-00000500.json`: a manifest that
says which rows of which tensor are in which file, and the size and digest of each file. It is written last, when all files are
there. A checkpoint with a file that is missing or does not match, or without a manifest, is passed over, and the one before it
is used. Files are read by whatever number of processes there is, each only the rows that it needs; nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from beitkit.errors import UserError
from beitkit.system import write_atomically
from beitkit.train.checkpoints.manifest import Manifest, Piece, RowRange, StoredFile, StoredTensor, parse_manifest
from beitkit.train.checkpoints.tensor_files import NAME_OF_TYPE, digest_of_file, read_rows, write_tensors
from beitkit.train.machine.processes import ALONE, Processes

KEEP = 2
"""How many checkpoints stay: the newest, and the one before it in case the newest is torn."""


class Checkpoints:
    """The checkpoints of one run; all processes of the run call its methods together."""

    def __init__(self, folder: Path, processes: Processes = ALONE) -> None:
        self.folder = folder
        self.processes = processes

    def save(self, step: int, pieces: Mapping[str, Piece], numbers: Mapping[str, float]) -> None:
        """Write the state after `step` steps, then remove the oldest ones and what a killed run left half-written.

        Args:
            step: number of the checkpoint.
            pieces: tensors by name; those that every process holds whole are written by the main one.
            numbers: what else is to be remembered.
        """
        own = {name: piece for name, piece in pieces.items() if self._is_mine(piece)}
        rank = self.processes.rank
        parts = {
            name: StoredTensor(NAME_OF_TYPE[piece.rows.dtype], piece.shape, (RowRange(rank, piece.first, piece.end),))
            for name, piece in own.items()
        }
        written = self.processes.all_gather((self._write(step, own) if own else None, parts))
        if self.processes.is_main:
            manifest = Manifest.of(step, dict(numbers), written)
            write_atomically(self._manifest(step), manifest.encode())
            self._clean(manifest)
        self.processes.barrier()

    def restore(self) -> Restored | None:
        """The newest state that is whole, or None for a run that has not saved yet.

        Raises:
            UserError: if there are checkpoints and none of them is whole, or processes see different ones.
        """
        steps = self._newest_first()
        for rank, seen in enumerate(self.processes.all_gather(steps)):
            if seen != steps:
                raise UserError(
                    f"process {rank} found {_named(seen)} in {self.folder} and process {self.processes.rank} {_named(steps)}; "
                    "choose an --out on a disk that all machines share"
                )
        for step in steps:
            manifest = self._read(step)
            is_whole = manifest is not None and self._files_match(manifest)
            if all(self.processes.all_gather(is_whole)):
                assert manifest is not None
                return Restored(self, manifest)
        if steps:
            raise UserError(f"none of the {len(steps)} checkpoints in {self.folder} is whole; remove that folder to start anew")
        return None

    def file(self, step: int, number: int) -> Path:
        """One of the files of a checkpoint."""
        return self.folder / f"step-{step:08d}.{number}.safetensors"

    def _write(self, step: int, own: Mapping[str, Piece]) -> StoredFile:
        path, digests = self.file(step, self.processes.rank), []
        tensors = {name: piece.rows for name, piece in own.items()}
        write_atomically(path, lambda file: digests.append(write_tensors(file, tensors)))
        return StoredFile(path.stat().st_size, digests[0])

    def _manifest(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.json"

    def _is_mine(self, piece: Piece) -> bool:
        return self.processes.is_main if piece.is_whole else piece.rows.numel() > 0

    def _read(self, step: int) -> Manifest | None:
        try:
            manifest = parse_manifest(self._manifest(step).read_bytes())
        except (OSError, ValueError):
            return None
        return manifest if manifest.step == step else None

    def _files_match(self, manifest: Manifest) -> bool:
        """Whether the files are those of the manifest; each process looks at its share of them."""
        for number, stored in manifest.files.items():
            path = self.file(manifest.step, number)
            try:
                if path.stat().st_size != stored.bytes:
                    return False
                if number % self.processes.world_size == self.processes.rank and digest_of_file(path) != stored.blake2b:
                    return False
            except OSError:
                return False
        return True

    def _newest_first(self) -> list[int]:
        """Steps of which there is a manifest; files without one are what a killed save left."""
        found = (_step_of(path) for path in self.folder.glob("step-*.json"))
        return sorted((step for step in found if step is not None), reverse=True)

    def _clean(self, manifest: Manifest) -> None:
        """Keep this checkpoint and those before it; later ones were torn, or the run would have continued there."""
        before = [step for step in self._newest_first() if step < manifest.step]
        kept = [manifest.step, *before][:KEEP]
        own = {self._manifest(manifest.step), *(self.file(manifest.step, number) for number in manifest.files)}
        # A manifest goes before its files do.
        for path in sorted(self.folder.glob("step-*"), key=lambda path: path.suffix != ".json"):
            step = _step_of(path)
            if step not in kept or (step == manifest.step and path not in own):
                path.unlink()


class Restored(NamedTuple):
    """A checkpoint that is whole, not read yet."""

    checkpoints: Checkpoints
    manifest: Manifest

    @property
    def numbers(self) -> dict[str, float]:
        """What was remembered beside the tensors."""
        return self.manifest.numbers

    def fill(self, pieces: Mapping[str, Piece]) -> None:
        """Copy the stored values into the pieces that this process holds, reading no other rows.

        Raises:
            UserError: if other tensors are stored, or tensors of other shapes or types.
        """
        tensors = self.manifest.tensors
        if tensors.keys() != pieces.keys() or not all(tensors[name].fits(piece) for name, piece in pieces.items()):
            raise UserError(f"{self.checkpoints.folder} holds the state of another network; choose another --out")
        wanted: dict[int, list[tuple[str, int, Tensor]]] = {}
        for name, piece in pieces.items():
            for stored in tensors[name].rows:
                found = stored.within(piece.first, piece.end)
                if found is not None:
                    own = slice(found.first - piece.first, found.end - piece.first)
                    target = piece.rows if piece.rows.ndim == 0 else piece.rows[own]
                    wanted.setdefault(found.file, []).append((name, found.first - stored.first, target))
        for file, parts in wanted.items():
            read_rows(self.checkpoints.file(self.manifest.step, file), parts)


def _named(steps: list[int]) -> str:
    return f"the states after steps {', '.join(map(str, steps))}" if steps else "no state"


def _step_of(path: Path) -> int | None:
    """The step of a file of a checkpoint; None for one that is not, or only half."""
    match = re.fullmatch(r"step-(\d{8,})(\.\d+\.safetensors|\.json)", path.name)
    return int(match[1]) if match else None
