"""Pictures as people name them on a command line: files, folders, quoted globs and lists, mixed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from beitkit.data.files import EXTENSIONS, PictureList, find_pictures
from beitkit.errors import UserError


def gather_pictures(inputs: Sequence[Path]) -> PictureList:
    """All pictures that the inputs name, in the order of the inputs; what several of them name is there once.

    An input is a picture, a folder (searched as `find_pictures` does), a list of files that `find_pictures` reads, or, where
    nothing has exactly this name, a glob: `*`, `?`, `[...]`, and `**` for folders at any depth. A glob finds pictures by
    their endings, and folders.

    Raises:
        UserError: an input that names nothing, or no pictures, or an unreadable row of a list.
    """
    names = dict.fromkeys(name for given in inputs for name in _names(given))
    offsets = np.zeros(len(names) + 1, dtype=np.int64)
    np.cumsum([len(name) for name in names], out=offsets[1:])
    return PictureList(Path(), b"".join(names), offsets)


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
