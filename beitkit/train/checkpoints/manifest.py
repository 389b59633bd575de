"""Manifest of a checkpoint, as JSON: which rows of which tensor are in which file, with size and digest of each file.

A manifest contains no paths: files are numbered. It carries its own checksum, so that a damaged one is noticed, and is validated
before use, so that a hostile one is rejected.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from beitkit.files import parse_json
from beitkit.train.checkpoints.tensor_files import NAME_OF_TYPE

FORMAT_VERSION = 1
MAX_BYTES = 2**28
"""Size limit of a manifest; that of a thousand ranks and the largest network is far smaller."""


KEYS = {"format", "step", "numbers", "files", "tensors"}
"""What a manifest holds beside its checksum, which those of the first versions lack."""


class Piece(NamedTuple):
    """The part of a tensor that one rank holds: some rows along the first axis, or all of it."""

    rows: Tensor
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first: int = 0
    """Index of the first row in the whole tensor."""

    @property
    def is_whole(self) -> bool:
        """Whether this is the tensor itself."""
        return tuple(self.rows.shape) == self.shape

    @property
    def end(self) -> int:
        """The row after the last one; a scalar has one row."""
        return self.first + (1 if self.rows.ndim == 0 else len(self.rows))


class RowRange(NamedTuple):
    """Rows of a tensor along its first axis; a scalar has one."""

    file: int
    """Number of the file that holds them."""
    first: int
    end: int
    """The row after the last one."""

    def within(self, first: int, end: int) -> RowRange | None:
        """Those that lie in a range of rows, if any."""
        found = RowRange(self.file, max(self.first, first), min(self.end, end))
        return found if found.first < found.end else None


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint, or the part that one rank stores."""

    dtype: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: tuple[RowRange, ...]
    """In ascending order, without a gap."""

    def fits(self, piece: Piece) -> bool:
        """Whether a piece of a tensor can be filled from here."""
        return self.shape == piece.shape and self.dtype == NAME_OF_TYPE.get(piece.rows.dtype)


class StoredFile(NamedTuple):
    """Expected size and digest of a file."""

    bytes: int
    blake2b: str


class Manifest(NamedTuple):
    """Everything of a checkpoint except the values of its tensors."""

    step: int
    numbers: dict[str, float]
    files: dict[int, StoredFile]
    tensors: dict[str, StoredTensor]

    @classmethod
    def of(
        cls, step: int, numbers: dict[str, float], written: Sequence[tuple[StoredFile | None, Mapping[str, StoredTensor]]]
    ) -> Manifest:
        """The manifest of the files that the ranks wrote, in rank order."""
        files = {number: file for number, (file, _) in enumerate(written) if file is not None}
        tensors: dict[str, StoredTensor] = {}
        for _, parts in written:
            for name, part in parts.items():
                before = tensors[name].rows if name in tensors else ()
                tensors[name] = part._replace(rows=(*before, *part.rows))
        return cls(step, numbers, files, tensors)

    def encode(self) -> bytes:
        """Serialize the manifest."""
        content = {
            "format": FORMAT_VERSION,
            "step": self.step,
            "numbers": self.numbers,
            "files": {str(number): file._asdict() for number, file in self.files.items()},
            "tensors": {name: stored._asdict() for name, stored in self.tensors.items()},
        }
        return json.dumps({**content, "checksum": _checksum(content)}, allow_nan=False).encode()


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest.

    Raises:
        ValueError: if it is not a manifest, is inconsistent, or has another checksum than its content.
    """
    if len(data) > MAX_BYTES:
        raise ValueError("too large for a manifest")
    try:
        content = parse_json(data)
        checksum = content.pop("checksum", None)
        _check(content.keys() == KEYS and (checksum is None or checksum == _checksum(content)))
        _check(content["format"] == FORMAT_VERSION)
        numbers = {str(name): float(value) for name, value in content["numbers"].items()}
        _check(all(map(math.isfinite, numbers.values())))
        files = {int(number): StoredFile(_size(file["bytes"]), str(file["blake2b"])) for number, file in content["files"].items()}
        tensors = {str(name): _stored(entry) for name, entry in content["tensors"].items()}
        _check(all(rows.file in files for stored in tensors.values() for rows in stored.rows))
        return Manifest(_size(content["step"]), numbers, files, tensors)
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError("not a manifest") from error


def _checksum(content: Mapping[str, Any]) -> str:
    """Of what a manifest says, however it is written."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _stored(entry: Mapping[str, Any]) -> StoredTensor:
    shape = tuple(_size(size) for size in entry["shape"])
    rows = tuple(RowRange(*(_size(number) for number in three)) for three in entry["rows"])
    reached = 0
    for some in rows:
        _check(some.first == reached and some.end > reached)
        reached = some.end
    _check(reached == (shape[0] if shape else 1))
    return StoredTensor(str(entry["dtype"]), shape, rows)


def _size(value: object) -> int:
    _check(isinstance(value, int) and not isinstance(value, bool) and value >= 0)
    assert isinstance(value, int)
    return value


def _check(is_so: bool) -> None:
    if not is_so:
        raise ValueError("the manifest contradicts itself")
