"""Pictures as people name them on a command line: files, folders, quoted globs and lists, mixed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from beitkit.data.decoding.formats import EXTENSIONS
from beitkit.data.sources.archives import Archives, archive_pictures, archives_at
from beitkit.data.sources.find import find_pictures, index_at
from beitkit.data.sources.image_list import PictureList
from beitkit.errors import UserError


def gather_pictures(inputs: Sequence[Path]) -> PictureList:
    """All pictures that the inputs name, in the order of the inputs; what several of them name is there once.

    Archives (`data.sources.archives`), or one index, are given by themselves. Any other input is a picture, a folder (searched
    as `find_pictures` does), a list of files that `find_pictures` reads, or, where nothing has exactly this name, a glob: `*`,
    `?`, `[...]`, and `**` for folders at any depth. A glob finds pictures by their endings, and folders.

    Raises:
        UserError: an input that names nothing, or no pictures, or an unreadable row of a list.
    """
    if (archived := _archived(inputs)) is not None:
        return archived
    names = dict.fromkeys(name for given in inputs for name in _names(given))
    offsets = np.zeros(len(names) + 1, dtype=np.int64)
    np.cumsum([len(name) for name in names], out=offsets[1:])
    return PictureList(Path(), b"".join(names), offsets)


def _archived(inputs: Sequence[Path]) -> PictureList | None:
    """The pictures of inputs that are archives, or one index; None where none is either."""
    if len(inputs) == 1 and index_at(inputs[0]) is not None:
        return find_pictures(inputs[0])
    found = [(given, archives_at(given)) for given in inputs]
    archives = [one for _, one in found if one is not None]
    if not archives:
        return None
    other = next((given for given, one in found if one is None or one.kind != archives[0].kind), None)
    if other is not None:
        raise UserError(f"{archives[0].given} holds archives and {other} none of this kind; give them in two commands")
    places = dict.fromkeys(place for one in archives for place in one.places)
    return archive_pictures(Archives(archives[0].given, archives[0].kind, tuple(places)), labelled=False)


def _names(given: Path) -> Iterator[bytes]:
    """The pictures of one input, relative to where the program runs."""
    if not given.exists() and glob.has_magic(str(given)):
        yield from _matches(given)
    elif _is_picture(given):
        yield os.fsencode(given)
    else:
        found = find_pictures(given)
        yield from (os.fsencode(found.path(index)) for index in range(len(found)))


def _matches(pattern: Path) -> Iterator[bytes]:
    is_empty = True
    for path in map(Path, sorted(glob.glob(str(pattern), recursive=True))):  # noqa: PTH207 - Path.glob takes no absolute pattern
        if _is_picture(path):
            is_empty = False
            yield os.fsencode(path)
        elif path.is_dir() and "**" not in pattern.parts:  # `**` itself looks into every folder
            is_empty = False
            yield from _names(path)
    if is_empty:
        raise UserError(
            f"nothing matches {pattern}: no picture (a file that ends in .jpg, .png, .webp, .tif and so on), no folder"
        )


def _is_picture(path: Path) -> bool:
    """Whether this is a regular file with the ending of a picture."""
    return path.suffix.lower() in EXTENSIONS and path.is_file()
