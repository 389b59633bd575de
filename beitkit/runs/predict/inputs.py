"""Image arguments on the command line: files, folders, quoted globs and lists, mixed."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from beitkit.configs.data import ColumnsConfig
from beitkit.data.decoding.formats import ALL_EXTENSIONS
from beitkit.data.sources.archives import Archives, archive_images, archives_at
from beitkit.data.sources.find import find_images, packed_at
from beitkit.data.sources.folders import described_ending, say_left_out
from beitkit.data.sources.image_list import BETWEEN_BANDS, ImageList
from beitkit.errors import UserError


def gather_images(inputs: Sequence[Path], column: str | None = None) -> ImageList:
    """All images that the inputs name, in the order of the inputs; what several of them name is there once.

    `column` names that of the images, in tables and Parquet files.

    Archives (`data.sources.archives`), or one index, are given by themselves. Any other input is an image, a folder (searched
    as `find_images` does), a list of files that `find_images` reads, or, where nothing has exactly this name, a glob: `*`,
    `?`, `[...]`, and `**` for folders at any depth. A glob finds images by their endings, and folders.

    Raises:
        UserError: an input that names nothing, or no images, or an unreadable row of a list.
    """
    if (archived := _archived(inputs, column)) is not None:
        return archived
    return ImageList.of(Path(), list(dict.fromkeys(name for given in inputs for name in _names(given, column))))


def _archived(inputs: Sequence[Path], column: str | None) -> ImageList | None:
    """The images of inputs that are archives, or one index; None where none is either."""
    if len(inputs) == 1 and packed_at(inputs[0]) is not None:
        return find_images(inputs[0], column)
    found = [(given, archives_at(given)) for given in inputs]
    archives = [one for _, one in found if one is not None]
    if not archives:
        return None
    other = next((given for given, one in found if one is None or one.kind != archives[0].kind), None)
    if other is not None:
        raise UserError(f"{archives[0].given} holds archives and {other} none of this kind; give them in two commands")
    places = dict.fromkeys(place for one in archives for place in one.places)
    together = Archives(archives[0].given, archives[0].kind, tuple(places))
    return archive_images(together, labeled=False, columns=ColumnsConfig(image=column))


def _names(given: Path, column: str | None) -> Iterator[bytes]:
    """The images of one input, relative to where the program runs."""
    if not given.exists() and glob.has_magic(str(given)):
        yield from _matches(given, column)
    elif _is_image(given):
        yield os.fsencode(given)
    else:
        found = find_images(given, column)
        yield from (BETWEEN_BANDS.join(map(os.fsencode, found.files(index))) for index in range(len(found)))


def _matches(pattern: Path, column: str | None) -> Iterator[bytes]:
    is_empty, left_out = True, Counter[str]()
    for path in map(Path, sorted(glob.glob(str(pattern), recursive=True))):  # noqa: PTH207 - Path.glob takes no absolute pattern
        if _is_image(path):
            is_empty = False
            yield os.fsencode(path)
        elif path.is_dir() and "**" not in pattern.parts:  # `**` itself looks into every folder
            is_empty = False
            yield from _names(path, column)
        elif path.is_file():
            left_out[described_ending(os.fsencode(path.name))] += 1
    if is_empty:
        raise UserError(f"nothing matches {pattern}: no image (a file that ends in .jpg, .png, .webp, .tif and so on), no folder")
    say_left_out(pattern, left_out)


def _is_image(path: Path) -> bool:
    """Whether this is a regular file with the ending of an image."""
    return path.suffix.lower() in ALL_EXTENSIONS and path.is_file()
