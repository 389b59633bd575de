"""Images in archives, given as a folder, file, pattern or URL, as an `ImageList`.

Of tar archives (WebDataset's layout) every regular member with the ending of an image counts, in the order of the archives and
of the members in them; its label is in the member `NAME.cls` beside it. Parquet files are described in `data.sources.parquet`.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beitkit.configs.data import ColumnsConfig
from beitkit.data.decoding.formats import has_ending
from beitkit.data.sources.folders import entries_of, is_file, is_folder, is_image
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.index import INDEX
from beitkit.data.sources.list_rows import as_text
from beitkit.data.sources.lists import SPLIT_NAMES, Split
from beitkit.data.sources.locations import entries_at, expanded, is_url, location, read_range, read_whole, size_of, unreadable
from beitkit.data.sources.members import KINDS, Kind, Members
from beitkit.data.sources.parquet import ArchiveImages, parquet_images
from beitkit.data.sources.tar import ReadAt, tar_members
from beitkit.errors import UserError
from beitkit.files import opened_regular

CLASSES = "classes.txt"
"""The names of the classes beside tar archives, one a line: what a number in a `.cls` member stands for."""
MOST_CLASSES = 2**24  # bytes
LABEL_ENDING = b".cls"
LONGEST_LABEL = 4096  # bytes
AT_ONCE = 8
"""Archives that are looked through together."""
AHEAD = 2**22
"""Bytes that are fetched together from behind a URL: a request for every header would take longer than the bytes between."""


class Archives(NamedTuple):
    """Archives of one kind that were given together."""

    given: str
    """The path, pattern or URL."""
    kind: Kind
    places: tuple[str, ...]
    listed_in: str | None = None
    """The index that lies beside them in their folder."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the archives are named after, as in `train-00000-of-00008.parquet`."""
        found = {_split_in(place) for place in self.places}
        return tuple(split for split in SPLIT_NAMES if split in found)

    def of_split(self, split: Split | None) -> Archives:
        """The archives of a split, or all where they are not divided.

        Raises:
            UserError: there are none, or they are divided and no split is chosen.
        """
        splits = self.splits
        if split is None:
            if "train" in splits or len(splits) > 1:
                raise UserError(f"{self.given} is divided into {', '.join(splits)} by its archives' names; choose one of them")
            return self
        if split not in splits:
            has = f"its archives are named {', '.join(splits)}" if splits else f"no archive is named {split}-..."
            raise UserError(f"{self.given} has no split {split!r}; {has}")
        return self._replace(places=tuple(place for place in self.places if _split_in(place) == split))


def archives_at(given: Path | str) -> Archives | None:
    """The archives that a path, a pattern or a URL names; None where a path names none.

    Raises:
        UserError: an archive that is not there, archives beside images or of both kinds, or no archives behind a URL.
    """
    text = location(given)
    if is_url(text) or not os.path.lexists(text):
        names = expanded(text)
        if names != [text]:
            return _named(text, names)
    if is_url(text):
        if _kind_of(text) is not None:
            return _named(text, [text])
        inside = entries_at(text)
        found = _archives_among(text, inside)
        if found is None:
            raise UserError(f"{text} holds no archives; behind a URL images are read from .tar and .parquet files")
        return found._replace(listed_in=next((place for place in inside if place.endswith(f"/{INDEX}")), None))
    if Path(text).is_dir():
        return _in_folder(Path(text))
    if text.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")) and Path(text).is_file():
        raise UserError(f"{text} is compressed, so single images cannot be read from it; decompress it to a .tar first")
    if _kind_of(text) is None:
        return None
    names = [text] if os.path.lexists(text) else sorted(glob.glob(text))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return _named(text, names) if names else None


def archive_images(found: Archives, *, labeled: bool, columns: ColumnsConfig = ColumnsConfig()) -> ImageList:
    """The images of archives; with labels each has its class among all that occur, or that the archives name.

    `columns` says which columns of Parquet files hold what.

    Raises:
        UserError: an archive that cannot be read, no images, or, when labeled, an image without a label.
    """

    def look(place: str) -> ArchiveImages:
        return _tar_images(place, labeled) if found.kind == "tar" else parquet_images(place, labeled, columns)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        parts = list(pool.map(look, found.places))
    names = [name for part in parts for name in part.names]
    if not names:
        raise UserError(f"{found.given} holds no images (members that end in .jpg, .png, .webp, .tif and so on)")
    archive = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.names) for part in parts])
    members = Members(found.kind, found.places, archive, np.concatenate([part.places for part in parts]), columns.image)
    files = ImageList.of(Path(found.given), names, members=members)
    if not labeled:
        return files
    known = [label for part in parts for label in part.labels]
    missing = next((index for index, label in enumerate(known) if label is None), None)
    if missing is not None:
        expected = (
            f"member {_stem(files.name(missing)).decode('utf-8', 'replace')}.cls" if found.kind == "tar" else "column 'label'"
        )
        raise UserError(f"{files.path(missing)} has no label; expected a {expected}")
    declared = _declared(found, parts)
    labels = [label for label in known if label is not None]
    if declared and found.kind == "tar":
        labels = [_named_class(label, declared, found.given) for label in labels]
    classes = declared or tuple(sorted(set(labels), key=class_order))
    index = {name: number for number, name in enumerate(classes)}
    return replace(files, classes=classes, labels=np.array([index[label] for label in labels], dtype=np.int64))


def class_order(name: str) -> tuple[int, str]:
    """Numbers by value and before words, words by code point."""
    return (int(name), name) if name.isascii() and name.isdigit() and len(name) <= _LONGEST_NUMBER else (1 << 62, name)


_LONGEST_NUMBER = 18  # digits of a class name that is ordered by its value


def label_member(name: bytes) -> bytes:
    """The member that holds the label of an image."""
    return _stem(name) + LABEL_ENDING


def _stem(name: bytes) -> bytes:
    return name.rpartition(b".")[0]


def _key(name: bytes) -> bytes:
    """WebDataset's name of a sample: up to the first dot of the last part."""
    folder, slash, last = name.rpartition(b"/")
    return folder + slash + last.partition(b".")[0]


def _named(given: str, places: Sequence[str]) -> Archives:
    kinds: set[Kind | None] = {_kind_of(place) for place in places}
    kind = kinds.pop()
    if kinds or kind is None:
        raise UserError(f"{given} does not name archives; expected a name that ends in .tar or in .parquet")
    absent = next((place for place in places if not is_url(place) and not Path(place).is_file()), None)
    if absent is not None:
        raise UserError(f"{absent} is not there, or no regular file; {given} names it")
    return Archives(given, kind, tuple(places))


def _kind_of(place: str) -> Kind | None:
    return next((kind for kind in KINDS if place.endswith(f".{kind}")), None)


def _archives_among(given: str, places: Sequence[str]) -> Archives | None:
    by_kind: dict[Kind, tuple[str, ...]] = {kind: tuple(place for place in places if _kind_of(place) == kind) for kind in KINDS}
    if all(by_kind.values()):
        raise UserError(f"{given} holds both .tar and .parquet files; give one kind, such as {by_kind['tar'][0]}")
    return next((Archives(given, kind, found) for kind, found in by_kind.items() if found), None)


def _in_folder(folder: Path) -> Archives | None:
    archives: list[str] = []
    index: str | None = None
    other: str | None = None
    for entry in entries_of(os.fsencode(folder)):
        if is_folder(entry) or is_image(entry):
            other = other or os.fsdecode(entry.name)
        elif _kind_of(os.fsdecode(entry.name)) is not None and is_file(entry):
            archives.append(os.fsdecode(entry.path))
        elif entry.name == INDEX.encode() and is_file(entry):
            index = os.fsdecode(entry.path)
    found = _archives_among(str(folder), sorted(archives))
    if found is not None and other is not None:
        raise UserError(
            f"{folder} holds archives ({Path(found.places[0]).name}) and also {other}, which is none, so it is not clear what to "
            "read; move one of them away, or give the archives by a pattern"
        )
    return None if found is None else found._replace(listed_in=index)


def _split_in(place: str) -> Split | None:
    name = place.rpartition("/")[2]
    return next(
        (
            split
            for split, names in SPLIT_NAMES.items()
            if any(name.startswith((f"{one}-", f"{one}_", f"{one}.")) for one in names)
        ),
        None,
    )


def _tar_images(place: str, labeled: bool) -> ArchiveImages:
    names: list[bytes] = []
    places: list[tuple[int, int]] = []
    classes: dict[bytes, str] = {}
    try:
        size = size_of(place)
        with contextlib.nullcontext() if is_url(place) else opened_regular(place) as file:
            read: ReadAt = _ahead(place) if file is None else lambda start, length: os.pread(file.fileno(), length, start)
            for member in tar_members(read, size, place):
                name = member.name.lstrip(b"/")
                while name.startswith(b"./"):
                    name = name[2:].lstrip(b"/")
                if any(part.startswith(b".") and part != b".." for part in name.split(b"/")):
                    continue  # hidden, as in folders; macOS puts a `._` member beside each
                if has_ending(name):
                    names.append(name)
                    places.append((member.start, member.length))
                elif labeled and name.endswith(LABEL_ENDING):
                    classes[_stem(name)] = _label(read(member.start, min(member.length, LONGEST_LABEL + 1)), place, name)
    except OSError as error:
        raise UserError(unreadable(place, error)) from None
    labels = [classes.get(_stem(name), classes.get(_key(name))) for name in names]
    return ArchiveImages(names, np.array(places, dtype=np.int64).reshape(-1, 2), labels)


def _ahead(place: str) -> ReadAt:
    """Reads behind a URL that fetch what follows as well."""
    begin, held = 0, b""

    def read(start: int, length: int) -> bytes:
        nonlocal begin, held
        if not begin <= start <= start + length <= begin + len(held):
            begin, held = start, read_range(place, start, max(length, AHEAD))
        return held[start - begin : start - begin + length]

    return read


def _label(content: bytes, place: str, name: bytes) -> str:
    try:
        label = content.decode().strip()
    except UnicodeDecodeError:
        label = ""
    if not label or len(content) > LONGEST_LABEL or "\n" in label:
        raise UserError(f"{place}: {os.fsdecode(name)} is no label; expected the number or the name of one class")
    return label


def _declared(found: Archives, parts: Sequence[ArchiveImages]) -> tuple[str, ...]:
    """The classes that the archives name, in order."""
    if found.kind == "parquet":
        named = {part.classes for part in parts}
        if len(named) > 1:
            raise UserError(f"the files of {found.given} name different classes; read them one by one")
        return named.pop()
    beside = found.places[0].rpartition("/")[0]
    try:
        text = read_whole(f"{beside}/{CLASSES}" if beside else CLASSES, MOST_CLASSES).decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError:
        return ()
    except OSError as error:
        if is_url(found.places[0]):
            return ()  # servers have many ways to say that there is none
        raise UserError(unreadable(f"{beside}/{CLASSES}" if beside else CLASSES, error)) from None
    return tuple(line for line in as_text(text).replace("\r\n", "\n").split("\n") if line)


def _named_class(label: str, classes: tuple[str, ...], given: str) -> str:
    """The name of a class that is given by its number or by its name."""
    if label.isascii() and label.isdigit():
        if int(label[:_LONGEST_NUMBER]) >= len(classes):
            raise UserError(f"{given}: the label {label} is not one of the {len(classes)} classes of {CLASSES}")
        return classes[int(label)]
    if label not in classes:
        raise UserError(f"{given}: the label {label!r} is not one of the {len(classes)} classes of {CLASSES}")
    return label
