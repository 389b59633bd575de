"""Index of a list of images: one safetensors file, written once and memory-mapped by every process.

Its tensors are the arrays of `ImageList` and `Members`: `names` (all, one after the other), `offsets`, `labels`, and of archives
`archive` and `places`. What else there is to a list is JSON in the metadata. That holds the checksums of the tensors, which are
compared when the file is opened, by reading it once, and the list's digest, so that a start does not compute it from all names.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from beitkit.data.decoding.decode import one_line
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.locations import is_url, read_whole, size_of, unreadable
from beitkit.data.sources.members import KINDS, Members
from beitkit.errors import UserError
from beitkit.files import opened_regular, parse_json
from beitkit.system import write_atomically

ENDING = ".index"
INDEX = f"pictures{ENDING}"
"""The index that lies beside archives and is used in their place."""
DESCRIPTION, CHECKSUM = "beitkit index", "checksum"
"""Keys of the metadata: a description of the list in JSON, and the checksum of this."""
AT_ONCE = 2**22
"""Numbers that are checked together."""
BEFORE_SAFETENSORS = b"beitkit pictures"
"""How an index began that was no safetensors file."""
MOST_BYTES = 2**34
"""Of an index that is fetched from a URL."""
_ALIGNMENT = 8
_TYPES = {
    "offsets": ("I64", "<i8"),
    "places": ("I64", "<i8"),
    "labels": ("I64", "<i8"),
    "archive": ("I32", "<i4"),
    "names": ("U8", "<u1"),
}
"""The tensors and their types, as safetensors and numpy call them; wide ones first, so that each is aligned to its own width."""


class Mapped(np.memmap):
    """Numbers mapped from a file, which travel to another process as the file's name."""

    def __reduce__(self) -> Any:
        if isinstance(self.base, mmap.mmap):
            return _mapped, (Path(str(self.filename)), self.offset, self.dtype.str, self.shape)
        return np.array(self).__reduce__()  # a part of one: its place in the file is not known


def write_index(path: Path, files: ImageList, names: Iterable[bytes] | None = None) -> int:
    """Write a list of images to an index and return how many there are.

    Where they are too many for memory, `names` are their names; `files` is then empty and gives the rest.

    Raises:
        UserError: there are no images, or they can have several labels.
    """
    if files.targets is not None:
        raise UserError(f"the images of {files.root} can have several labels, which an index does not hold; leave `labels` out")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        if names is not None:
            files = replace(files, **_spooled(names, scratch))
        if not len(files):
            raise UserError(f"{files.root} holds no images (files that end in .jpg, .png, .webp, .tif and so on)")
        members = files.members
        given = {
            "offsets": files.offsets,
            "places": None if members is None else members.places,
            "labels": files.labels,
            "archive": None if members is None else members.archive,
            "names": np.frombuffer(files.names, dtype=np.uint8),
        }
        arrays = {name: np.ascontiguousarray(a, _TYPES[name][1]) for name, a in given.items() if a is not None}
        description = {
            "root": _relative(str(files.root), path),
            "digest": replace(files, labels=None, classes=(), known_digest=None).digest,
            "labelled_digest": None if files.labels is None else files.computed_digest(),
            "classes": list(files.classes),
            "checksums": {name: zlib.crc32(array.data) for name, array in arrays.items()},
        }
        if members is not None:
            archives = [[_relative(place, path), size_of(place)] for place in members.archives]
            description |= {"kind": members.kind, "archives": archives}
            description |= {} if members.column is None else {"column": members.column}
        write_atomically(path, lambda file: _write(file, json.dumps(description), arrays))
    return len(files)


def _spooled(names: Iterable[bytes], file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """`names` and `offsets` of a list whose names are written to a file as they come."""
    lengths = [np.zeros(1, dtype=np.int64)]
    rest = iter(names)
    while part := list(itertools.islice(rest, 2**16)):
        file.write(b"".join(part))
        lengths.append(np.fromiter(map(len, part), dtype=np.int64, count=len(part)))
    file.flush()
    offsets = np.cumsum(np.concatenate(lengths))
    return {"offsets": offsets, "names": np.memmap(file, mode="r") if offsets[-1] else np.empty(0, dtype=np.uint8)}


def _write(file: IO[bytes], description: str, arrays: dict[str, NDArray[Any]]) -> None:
    """The safetensors file; the library's own writer would make it unreadable for other users."""
    header: dict[str, Any] = {"__metadata__": {DESCRIPTION: description, CHECKSUM: _checksum(description)}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[name][0], "shape": array.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for array in arrays.values():
        file.write(array.data)


def open_index(place: str, *, labeled: bool) -> ImageList:
    """The list in an index, a path or a URL; with its labels, or as if it had none.

    Raises:
        UserError: it is not there, is damaged or cut short, an archive has another size, or it has no labels to be used.
    """
    description, arrays = _read(place)
    if labeled and "labels" not in arrays:
        raise UserError(f"{place} holds no labels; make the index again with labels, or give labeled images")
    members = None
    if "kind" in description:
        archives = tuple(_absolute(name, place) for name, _ in description["archives"])
        for archive, (_, size) in zip(archives, description["archives"], strict=True):
            _check_size(archive, size, place)
        members = Members(description["kind"], archives, arrays["archive"], arrays["places"], description.get("column"))
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


def _read(place: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description of an index and its arrays, checked; mapped where the index is a file here."""
    try:
        if not is_url(place):
            return _opened(Path(place), place)
        with tempfile.NamedTemporaryFile() as copy:
            copy.write(read_whole(place, MOST_BYTES))
            copy.flush()
            description, arrays = _opened(Path(copy.name), place)
            return description, {name: np.array(array) for name, array in arrays.items()}
    except FileNotFoundError:
        raise UserError(f"{place} does not exist; expected an index of images") from None
    except OSError as error:
        raise UserError(unreadable(place, error)) from None
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{place} is no index, or is damaged ({one_line(error)}); make it again") from None


def _opened(path: Path, place: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with opened_regular(path) as file:
        start = file.read(len(BEFORE_SAFETENSORS))
    if start == BEFORE_SAFETENSORS:
        raise UserError(f"{place} was made by an earlier version; remove it and make it again")
    end = 8 + int.from_bytes(start[:8], "little")
    arrays: dict[str, NDArray[Any]] = {}
    checksums: dict[str, int] = {}
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if _checksum(metadata[DESCRIPTION]) != metadata[CHECKSUM]:
            raise ValueError("the checksum of its description is another one")
        for name in file.offset_keys():  # the library has checked that they lie without gaps
            part = file.get_slice(name)
            if part.get_dtype() != _TYPES[name][0]:
                raise ValueError(f"{name} is of type {part.get_dtype()}")
            there = path, end, _TYPES[name][1], tuple(part.get_shape())
            arrays[name] = _mapped(*there)
            checksums[name] = zlib.crc32(_mapped(*there).data)  # by a mapping of its own, which leaves memory
            end += arrays[name].nbytes
    description = parse_json(metadata[DESCRIPTION])
    if checksums != description["checksums"]:
        raise ValueError("its checksum is another one")
    of_images = arrays.keys() - {"names", "offsets"}
    is_complete = of_images - {"labels"} == ({"archive", "places"} if "kind" in description else set())
    counts = {len(arrays["offsets"]) - 1, *(len(arrays[name]) for name in of_images)}
    if not is_complete or len(counts) > 1 or arrays["offsets"][-1] != len(arrays["names"]):
        raise ValueError("its tensors do not belong together")
    _check(description, arrays)
    return description, arrays


def _check(description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Raise a `ValueError` for what no index says, whoever wrote it: its checksums say only that it is as it was written."""
    classes, archives, column = description["classes"], description.get("archives", []), description.get("column")
    texts = [description["root"], description["digest"], *classes, *(name for name, _ in archives)]
    texts += [text for text in (description["labelled_digest"], column) if text is not None]
    if not all(isinstance(text, str) for text in texts) or not isinstance(classes, list):
        raise ValueError("its description holds no texts where they are expected")
    if "kind" in description and (description["kind"] not in KINDS or not all(type(size) is int for _, size in archives)):
        raise ValueError("its archives are of no known kind")
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    if any(shape != ((2,) if name == "places" else ()) for name, shape in shapes.items()):
        raise ValueError("its tensors have other shapes")
    bounds = {"offsets": len(arrays["names"]) + 1, "labels": len(classes), "archive": len(archives), "places": 1 << 62}
    if any(_is_outside(arrays[name], most) for name, most in bounds.items() if name in arrays):
        raise ValueError("its tensors point outside of it")
    offsets = arrays["offsets"]
    if offsets[0] != 0 or any((np.diff(part) < 0).any() for part in _parts(offsets)):
        raise ValueError("its names overlap")
    if "labels" in arrays and not isinstance(description["labelled_digest"], str):
        raise ValueError("it has labels and no digest of them")


def _parts(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """An array a part at a time, each beginning with the end of the one before; it may be larger than the memory."""
    for start in range(0, max(1, len(array) - 1), AT_ONCE):
        yield np.asarray(array[start : start + AT_ONCE + 1])


def _is_outside(array: NDArray[Any], most: int) -> bool:
    """Whether a number is negative or not below the limit."""
    return any(part.size and (part.min() < 0 or part.max() >= most) for part in _parts(array))


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


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
