"""Checkpoints of the training state: atomic, verified when read, the newest two kept.

A checkpoint consists of one file per rank, `step-00000500.0.safetensors` and so on, and `step-00000500.json`: a manifest of which
rows of which tensor are in which file, with the size and digest of each file, and its own checksum. The manifest is written last.
A checkpoint without a manifest, or with a missing or damaged file (the manifest too), is skipped in favor of the one before it.
It can be read with another number of ranks, each reading only the rows that it needs; nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from beitkit.errors import UserError
from beitkit.files import read_regular
from beitkit.system import write_atomically
from beitkit.train.checkpoints.manifest import MAX_BYTES, Manifest, Piece, RowRange, StoredFile, StoredTensor, parse_manifest
from beitkit.train.checkpoints.tensor_files import NAME_OF_TYPE, digest_of_file, read_rows, write_tensors
from beitkit.train.machine.processes import ALONE, Processes

KEEP = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""


class Checkpoints:
    """The checkpoints of one run; its methods are collective: all ranks call them."""

    def __init__(self, folder: Path, processes: Processes = ALONE, keep: int = KEEP) -> None:
        """Those in `folder`, of which the newest `keep` stay."""
        self.folder = folder
        self.processes = processes
        self.keep = keep
        self.damaged: list[int] = []
        """Steps whose checkpoints `newest` passed over, because a file is damaged or missing; newest first."""

    def save(self, step: int, pieces: Mapping[str, Piece], numbers: Mapping[str, float]) -> None:
        """Write the state after `step` steps, then remove older checkpoints and incomplete files of a killed run.

        Tensors that every rank holds whole are written by rank 0; `numbers` are stored in the manifest.
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

    def newest(self, most: int | None = None) -> Manifest | None:
        """The newest complete checkpoint, after at most this many steps; None if there is none to be read.

        Raises:
            UserError: if none of the existing checkpoints is complete, or ranks see different ones.
        """
        steps = [step for step in self._newest_first() if most is None or step <= most]
        for rank, seen in enumerate(self.processes.all_gather(steps)):
            if seen != steps:
                raise UserError(
                    f"process {rank} found {_named(seen)} in {self.folder} and process {self.processes.rank} {_named(steps)}; "
                    "choose an `out` on a disk that all machines share"
                )
        for step in steps:
            manifest = self._read(step)
            is_whole = manifest is not None and self._files_match(manifest)
            if all(self.processes.all_gather(is_whole)):
                assert manifest is not None
                self.damaged = steps[: steps.index(step)]
                return manifest
        if steps:
            raise UserError(f"none of the {len(steps)} checkpoints in {self.folder} is whole; remove that folder to start anew")
        return None

    @property
    def has_begun(self) -> bool:
        """Whether a state was saved, whole or not."""
        return bool(self._newest_first())

    def restore(self, manifest: Manifest, pieces: Mapping[str, Piece]) -> None:
        """Copy the values of a complete checkpoint into the pieces that this rank holds; reads no other rows.

        Raises:
            UserError: if names, shapes or types of the tensors differ.
        """
        tensors = manifest.tensors
        if tensors.keys() != pieces.keys() or not all(tensors[name].fits(piece) for name, piece in pieces.items()):
            raise UserError(f"{self.folder} holds the state of another network; choose another `out`")
        wanted: dict[int, list[tuple[str, int, Tensor]]] = {}
        for name, piece in pieces.items():
            for stored in tensors[name].rows:
                found = stored.within(piece.first, piece.end)
                if found is not None:
                    own = slice(found.first - piece.first, found.end - piece.first)
                    target = piece.rows if piece.rows.ndim == 0 else piece.rows[own]
                    wanted.setdefault(found.file, []).append((name, found.first - stored.first, target))
        for file, parts in wanted.items():
            read_rows(self.file(manifest.step, file), parts)

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
            manifest = parse_manifest(read_regular(self._manifest(step), MAX_BYTES))
        except (OSError, ValueError):
            return None
        return manifest if manifest.step == step else None

    def _files_match(self, manifest: Manifest) -> bool:
        """Whether the files match the manifest; each rank checks its share of them."""
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
        """Steps with a manifest; files without one are left from a killed save."""
        found = (_step_of(path) for path in self.folder.glob("step-*.json"))
        return sorted((step for step in found if step is not None), reverse=True)

    def _clean(self, manifest: Manifest) -> None:
        """Keep this checkpoint and those before it; later ones are damaged, or the run would have continued there."""
        before = [step for step in self._newest_first() if step < manifest.step]
        kept = [manifest.step, *before][: self.keep]
        own = {self._manifest(manifest.step), *(self.file(manifest.step, number) for number in manifest.files)}
        # A manifest goes before its files do.
        for path in sorted(self.folder.glob("step-*"), key=lambda path: path.suffix != ".json"):
            step = _step_of(path)
            if step not in kept or (step == manifest.step and path not in own):
                path.unlink()


def _named(steps: list[int]) -> str:
    return f"the states after steps {', '.join(map(str, steps))}" if steps else "no state"


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint file; None for other and incomplete files."""
    match = re.fullmatch(r"step-(\d{8,})(\.\d+\.safetensors|\.json)", path.name)
    return int(match[1]) if match else None
