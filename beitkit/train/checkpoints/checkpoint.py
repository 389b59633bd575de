"""Checkpoints of the training state: atomic, verified when written and when read, the newest two kept.

A checkpoint consists of one file per rank, `step-00000500.0.safetensors` and so on, and `step-00000500.json`: a manifest of which
rows of which tensor are in which file, with the size and digest of each file, and its own checksum. The manifest is written last.
A checkpoint without a manifest, or with a missing or damaged file (the manifest too), is skipped in favor of the one before it.
It can be read with another number of ranks, each reading only the rows that it needs; nothing is unpickled.

A state can be written by a thread while training goes on, from a copy in host memory. One that cannot be written, because the
disk is full for instance, is tried again after all checkpoints but the newest were removed; if that fails too, it is left out.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from beitkit.errors import ProcessLost, UserError
from beitkit.files import read_regular, why
from beitkit.system import drop_from_cache, write_atomically
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
        self.unfinished: list[int] = []
        """Steps after the newest checkpoint of which there are tensors and no manifest, as a killed save leaves them."""
        self.failure: str | None = None
        """Why the last state that was to be saved is not there; None if it is, or is being written."""
        self.failures: list[tuple[int, str]] = []
        """Steps whose state could not be saved, and why, for those who take them from here and say so."""
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, pieces: Mapping[str, Piece], numbers: Mapping[str, float], *, in_background: bool = False) -> None:
        """Write the state after `step` steps, then remove older checkpoints and incomplete files of a killed run.

        Tensors that every rank holds whole are written by rank 0; `numbers` are stored in the manifest. In the background a copy
        is written, and `settle` waits for it. A disk that is full is no error here: see `failure`.
        """
        self.settle()
        own = {name: piece for name, piece in pieces.items() if self._is_mine(piece)}
        if not in_background:
            self._commit(step, own, dict(numbers), self.processes)
            return
        copies = {name: piece._replace(rows=piece.rows.detach().to("cpu", copy=True)) for name, piece in own.items()}
        self._writing = threading.Thread(target=self._commit_aside, args=(step, copies, dict(numbers)), daemon=True)
        self._writing.start()

    def settle(self) -> None:
        """Wait until what is written in the background is there.

        Raises:
            ProcessLost: if another rank died meanwhile.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    @contextmanager
    def settled(self) -> Iterator[None]:
        """What is written in the background inside is there at the end, also if that is an error."""
        try:
            yield
        except BaseException:
            with suppress(ProcessLost):
                self.settle()
            raise
        self.settle()

    def _commit_aside(self, step: int, own: Mapping[str, Piece], numbers: dict[str, float]) -> None:
        try:
            self._commit(step, own, numbers, self.processes.aside())
        except BaseException as error:  # raised where somebody waits for it
            self._error = error

    def _commit(self, step: int, own: Mapping[str, Piece], numbers: dict[str, float], processes: Processes) -> None:
        """Write the files of all ranks, verify them, then the manifest; the second time with more room."""
        parts = {
            name: StoredTensor(NAME_OF_TYPE[piece.rows.dtype], piece.shape, (RowRange(processes.rank, piece.first, piece.end),))
            for name, piece in own.items()
        }
        problem = ""
        for attempt in range(2):
            if attempt and processes.is_main:
                self.make_room()
            processes.barrier()
            file, problem = self._written(step, own) if own else (None, "")
            written = processes.all_gather((file, parts, problem))
            problem = next((one for *_, one in written if one), "")
            if not problem and processes.is_main:
                problem = self._finish(Manifest.of(step, numbers, [(file, parts) for file, parts, _ in written]))
            problem = processes.all_gather(problem)[0] or problem
            if not problem:
                self.failure = None
                return
            if own and (step not in self._newest_first()):
                self.file(step, processes.rank).unlink(missing_ok=True)
        self.failure = problem
        self.failures.append((step, problem))

    def _finish(self, manifest: Manifest) -> str:
        """Write the manifest, and remove what is not needed any more; returns why that is not possible."""
        try:
            write_atomically(self._manifest(manifest.step), manifest.encode())
            self._clean(manifest)
        except OSError as error:
            return f"{error.filename}: {why(error)}"
        return ""

    def make_room(self) -> None:
        """Remove all checkpoints but the newest, and what a killed or failed save left."""
        newest = self._newest_first()[:1]
        for path in sorted(self.folder.glob("step-*"), key=lambda path: path.suffix != ".json"):
            if _step_of(path) not in newest:
                path.unlink(missing_ok=True)

    def newest(self, most: int | None = None) -> Manifest | None:
        """The newest complete checkpoint, after at most this many steps; None if there is none to be read.

        Raises:
            UserError: if none of the existing checkpoints is complete, or ranks see different ones.
        """
        self.settle()
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
                self.unfinished = [later for later in self._without_manifest() if later > step]
                return manifest
        if steps:
            raise UserError(f"none of the {len(steps)} checkpoints in {self.folder} is whole; remove that folder to start anew")
        if most is None:
            self.unfinished = self._without_manifest()
            if len(self.unfinished) > 1:  # a kill leaves one such step: at the next save everything else is removed
                raise UserError(
                    f"{self.folder} holds {_named(self.unfinished)} but not their manifests "
                    f"({self._manifest(self.unfinished[0]).name}); put these back, or remove that folder to start anew"
                )
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
        if manifest.tensors.keys() != pieces.keys():
            raise UserError(f"{self.folder} holds the state of another network; choose another `out`")
        self.read(manifest, pieces)

    def read(self, manifest: Manifest, pieces: Mapping[str, Piece]) -> None:
        """Copy the values of some tensors of a complete checkpoint; as `restore`, which wants all."""
        tensors = manifest.tensors
        if not all(name in tensors and tensors[name].fits(piece) for name, piece in pieces.items()):
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

    def _written(self, step: int, own: Mapping[str, Piece]) -> tuple[StoredFile | None, str]:
        """Write this rank's file and read it again; returns what is there, or why it is not."""
        path, digests = self.file(step, self.processes.rank), []
        tensors = {name: piece.rows for name, piece in own.items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        try:
            write_atomically(path, lambda file: digests.append(write_tensors(file, tensors)), size)
            drop_from_cache(path)
            if digest_of_file(path) != digests[0]:
                return None, f"{path}: another content is read than was written"
            return StoredFile(path.stat().st_size, digests[0]), ""
        except OSError as error:
            return None, f"{error.filename or path}: {why(error)}"

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

    def _without_manifest(self) -> list[int]:
        """Steps of which there are tensors only, newest first."""
        found = {_step_of(path) for path in self.folder.glob("step-*.safetensors")} - {None, *self._newest_first()}
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
