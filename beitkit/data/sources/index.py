"""An index: one file that holds a list of images, made once and mapped into memory by every process that reads it.

The file is a preamble of 64 bytes, sections of numbers (each at a multiple of 64 bytes), and a description in JSON at the end.
The preamble holds the checksums of the description and of the sections; both are compared when the file is opened, by reading it
once. The digest of the list is kept as well, so that a start does not compute it from ten million names.
"""

from __future__ import annotations

import heapq
import itertools
import json
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from beitkit.data.sources.folders import walk
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.locations import is_url, read_whole, size_of
from beitkit.data.sources.members import Members
from beitkit.data.sources.tar import ReadAt
from beitkit.errors import UserError
from beitkit.system import write_atomically

ENDING = ".index"
INDEX = f"pictures{ENDING}"
"""The index that lies beside archives and is used in their place."""
MAGIC = b"beitkit pictures"
VERSION = 1
_PREAMBLE = struct.Struct("<16sIIIQQ20x")  # magic, version, checksums of sections and description, its place and length
_ALIGNMENT = 64
_PART = 2**22  # bytes that are read together
_SORTED_TOGETHER = 500_000  # names that a walk keeps in memory
_TYPES = {"names": "<u1", "offsets": "<i8", "archive": "<i4", "places": "<i8", "labels": "<i8"}


class Mapped(np.memmap):
    """Numbers mapped from a file, which travel to another process as the file's name."""

    def __reduce__(self) -> Any:
        if isinstance(self.base, mmap.mmap):
            return _mapped, (Path(str(self.filename)), self.offset, self.dtype.str, self.shape)
        return np.array(self).__reduce__()  # a part of one: its place in the file is not known


def walked(folder: Path, scratch: Path) -> Iterator[bytes]:
    """The names that `folders.walk` finds, sorted; a part of them at a time is in memory, the others in a file in `scratch`."""
    names = walk(folder)
    with tempfile.TemporaryFile(dir=scratch) as file:
        runs: list[tuple[int, int]] = []
        while part := sorted(itertools.islice(names, _SORTED_TOGETHER)):
            start = file.tell()
            file.write(b"\0".join(part))
            runs.append((start, file.tell()))
        file.flush()
        yield from heapq.merge(*(_run(file, start, stop) for start, stop in runs))


def _run(file: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    rest = b""
    while start < stop:
        part = rest + os.pread(file.fileno(), min(2**16, stop - start), start)
        start += 2**16
        *names, rest = part.split(b"\0")
        yield from names
    if rest:
        yield rest


def write_index(path: Path, files: ImageList, names: Iterable[bytes] | None = None) -> int:
    """Write a list of images to an index and return how many there are.

    Args:
        path: the index.
        files: the list.
        names: its names, where they are too many for memory; `files` is then empty and gives the rest.
    """
    total = 0

    def write(file: IO[bytes]) -> None:
        nonlocal total
        content = _Sections(file)
        content.write_names(files.name(index) for index in range(len(files))) if names is None else content.write_names(names)
        total = content.shapes["offsets"][0] - 1
        if not total:
            raise UserError(f"{files.root} holds no images (files that end in .jpg, .png, .webp, .tif and so on)")
        if files.members is not None:
            content.write("archive", files.members.archive)
            content.write("places", files.members.places)
        if files.labels is not None:
            content.write("labels", files.labels)
        file.flush()
        there = {name: _mapped(Path(file.name), *content.place(name)) for name in content.shapes}
        whole = replace(files, names=there["names"], offsets=there["offsets"], known_digest=None)
        description = {
            "root": _relative(str(files.root), path),
            "digest": replace(whole, labels=None, classes=()).digest,
            "labelled_digest": None if files.labels is None else whole.digest,
            "classes": list(files.classes),
            "sections": {name: [content.starts[name], list(shape)] for name, shape in content.shapes.items()},
        }
        if files.members is not None:
            archives = [[_relative(place, path), size_of(place)] for place in files.members.archives]
            description |= {"kind": files.members.kind, "archives": archives}
        end, encoded = file.tell(), json.dumps(description).encode()
        file.write(encoded)
        file.flush()
        with Path(file.name).open("rb") as written:
            checksum = _checksum(written, end)
        file.seek(0)
        file.write(_PREAMBLE.pack(MAGIC, VERSION, checksum, zlib.crc32(encoded), end, len(encoded)))

    write_atomically(path, write)
    return total


def open_index(place: str, *, labeled: bool) -> ImageList:
    """The list in an index, a path or a URL; with its labels, or as if it had none.

    Raises:
        UserError: it is not there, is damaged or cut short, an archive has another size, or it has no labels to be used.
    """
    description, arrays = _read(place)
    if labeled and "labels" not in arrays:
        raise UserError(f"{place} holds no labels; make it with beitkit index --labels, or give labeled images")
    members = None
    if "kind" in description:
        archives = tuple(_absolute(name, place) for name, _ in description["archives"])
        for archive, (_, size) in zip(archives, description["archives"], strict=True):
            _check_size(archive, size, place)
        members = Members(description["kind"], archives, arrays["archive"], arrays["places"])
    return ImageList(
        Path(_absolute(description["root"], place)),
        arrays["names"],
        arrays["offsets"],
        arrays["labels"] if labeled else None,
        tuple(description["classes"]) if labeled else (),
        members=members,
        known_digest=description["labelled_digest" if labeled else "digest"],
    )


def archives_in(place: str) -> tuple[str, ...]:
    """The archives that an index lists."""
    description, _ = _read(place)
    return tuple(_absolute(name, place) for name, _ in description.get("archives", []))


class _Sections:
    """The sections of an index as they are written, one after the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.starts: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        file.write(bytes(_ALIGNMENT))

    def write_names(self, names: Iterable[bytes]) -> None:
        """The section of names, and that of their offsets."""
        self.starts["names"] = self.file.tell()
        lengths = [np.zeros(1, dtype=np.int64)]
        rest = iter(names)
        while part := list(itertools.islice(rest, 2**16)):
            self.file.write(b"".join(part))
            lengths.append(np.fromiter(map(len, part), dtype=np.int64, count=len(part)))
        self.shapes["names"] = (self.file.tell() - self.starts["names"],)
        self._align()
        self.write("offsets", np.cumsum(np.concatenate(lengths)))

    def write(self, name: str, numbers: NDArray[Any]) -> None:
        """A section of numbers."""
        self.starts[name], self.shapes[name] = self.file.tell(), numbers.shape
        self.file.write(np.ascontiguousarray(numbers, dtype=_TYPES[name]).data)
        self._align()

    def place(self, name: str) -> tuple[int, str, tuple[int, ...]]:
        """Where a section begins, its type and its shape."""
        return self.starts[name], _TYPES[name], self.shapes[name]

    def _align(self) -> None:
        self.file.write(bytes(-self.file.tell() % _ALIGNMENT))


def _read(place: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description of an index and its arrays, checked; mapped where the index is a file here."""
    try:
        if is_url(place):
            content = read_whole(place)
            description = _description(content, len(content), lambda start, length: content[start : start + length])
            _refuse_unless(zlib.crc32(content[_ALIGNMENT : _sections_end(content)]) == _PREAMBLE.unpack_from(content)[2], place)
            arrays = {
                name: np.frombuffer(content, _TYPES[name], int(np.prod(shape)), start).reshape(shape)
                for name, (start, shape) in description["sections"].items()
            }
        else:
            with Path(place).open("rb") as file:
                preamble = file.read(_PREAMBLE.size)
                size = os.fstat(file.fileno()).st_size
                description = _description(preamble, size, lambda start, length: os.pread(file.fileno(), length, start))
                _refuse_unless(_checksum(file, _sections_end(preamble)) == _PREAMBLE.unpack(preamble)[2], place)
            arrays = {
                name: _mapped(Path(place), start, _TYPES[name], tuple(shape))
                for name, (start, shape) in description["sections"].items()
            }
    except FileNotFoundError:
        raise UserError(f"{place} does not exist; make it with beitkit index") from None
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror or ' '.join(str(error).split())[:200]}") from None
    except (ValueError, struct.error) as error:
        raise UserError(f"{place} is no index of this version, or is damaged ({error}); make it with beitkit index") from None
    return description, arrays


def _description(preamble: bytes, size: int, read: ReadAt) -> dict[str, Any]:
    magic, version, _, checksum, start, length = _PREAMBLE.unpack_from(preamble)
    if magic != MAGIC or version != VERSION:
        raise ValueError("another beginning")
    if start + length != size:
        raise ValueError(f"{size:,} bytes in place of {start + length:,}")
    encoded = read(start, length)
    if zlib.crc32(encoded) != checksum:
        raise ValueError("another end")
    return json.loads(encoded)


def _sections_end(preamble: bytes) -> int:
    return _PREAMBLE.unpack_from(preamble)[4]


def _refuse_unless(is_same: bool, place: str) -> None:
    if not is_same:
        raise UserError(f"{place} is damaged: its checksum is another one; make it again with beitkit index")


def _checksum(file: IO[bytes], end: int) -> int:
    """The checksum of all sections, read without mapping them."""
    checksum, start = 0, _ALIGNMENT
    while start < end:
        part = os.pread(file.fileno(), min(_PART, end - start), start)
        if not part:
            raise ValueError("cut short")
        checksum, start = zlib.crc32(part, checksum), start + len(part)
    return checksum


def _mapped(path: Path, start: int, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return Mapped(path, dtype=kind, mode="r", offset=start, shape=shape) if np.prod(shape) else np.empty(shape, dtype=kind)


def _check_size(archive: str, size: int, index: str) -> None:
    if is_url(archive):
        return  # asking for each would take as long as many images; a read that comes up short is noticed
    try:
        now = size_of(archive)
    except OSError:
        raise UserError(f"{archive} is not there, but {index} lists its images; put it back or make the index again") from None
    if now != size:
        raise UserError(f"{archive} has {now:,} bytes, but had {size:,} when {index} was made; make the index again")


def _relative(place: str, index: Path) -> str:
    """A place as it is kept in an index: relative to the index where it lies beside or below it."""
    if is_url(place):
        return place
    relative = os.path.relpath(place, index.parent)
    return os.path.abspath(place) if relative.startswith("..") else relative  # noqa: PTH100


def _absolute(name: str, index: str) -> str:
    if is_url(name) or name.startswith("/"):
        return name
    folder = index.rpartition("/")[0] if "/" in index else "."
    return folder if name == "." else f"{folder}/{name}"
