"""`ImageList`: an indexed list of images, with or without labels.

All names are one array of bytes, not a Python list: workers share it without copying, and each name costs its bytes and eight
more. Names that are not valid UTF-8 are kept as they are. The arrays may be memory-mapped from an index file
(`data.sources.index`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beitkit.data.decoding.decode import Bands, BrokenImage, Encoded, one_line
from beitkit.data.own.images import HEAD, OwnImages
from beitkit.data.sources.members import Members

BETWEEN_BANDS = b"\0"
"""In the name of an image that lies in several files, a channel in each: between these. No path can hold it."""
AT_ONCE = 2**18
"""Names that are looked at together."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """Images by index, with their classes if they have any. Build one with `find_images` or `find_labeled`."""

    root: Path
    """What the names are relative to: a folder, or what the archives were given as."""
    names: bytes | NDArray[np.uint8]
    """All names, one after the other."""
    offsets: NDArray[np.int64]
    """Where each name begins in `names`, and at the end where the last one stops; one longer than the list."""
    labels: NDArray[np.int64] | None = None
    """Index into `classes` per image, where each has one."""
    classes: tuple[str, ...] = ()
    targets: NDArray[np.bool_] | None = None
    """Which classes each image has, (images, classes), in place of `labels` where it may have none, one or several."""
    members: Members | None = None
    """Where the images lie in archives; None where they are files."""
    known_digest: str | None = None
    """The digest, where an index holds it."""
    items: OwnImages | None = None
    """Of whose items these are the images, by the numbers that are their names; None where they are files or in archives."""

    @classmethod
    def of(
        cls,
        root: Path,
        names: Sequence[bytes],
        *,
        classes: Sequence[str] = (),
        labels: NDArray[np.int64] | None = None,
        targets: NDArray[np.bool_] | None = None,
        members: Members | None = None,
        items: OwnImages | None = None,
    ) -> ImageList:
        """A list of these names."""
        offsets = np.zeros(len(names) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in names], out=offsets[1:])
        return cls(root, b"".join(names), offsets, labels, tuple(classes), targets, members, items=items)

    @classmethod
    def of_items(cls, items: OwnImages) -> ImageList:
        """All items of a caller's dataset; of a stream, which may be long, no name takes memory."""
        if items.is_stream:
            nowhere = np.broadcast_to(np.int64(0), len(items) + 1)
            return cls(Path(items.description), b"", nowhere, known_digest=items.fingerprint, items=items)
        return cls.of(Path(items.description), [b"%d" % index for index in range(len(items))], items=items)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def is_stream(self) -> bool:
        """Whether the images come in an order of their own, and are not to be had in another."""
        return self.items is not None and self.items.is_stream

    def path(self, index: int) -> Path:
        """The file of one image; of a member of an archive what messages and tables call it, `shard.tar: member.jpg`."""
        if self.items is not None:
            return self.items.path(int(self.name(index)))
        if self.members is not None:
            return Path(f"{self.members.archives[self.members.archive[index]]}: {os.fsdecode(self.name(index))}")
        return self.files(index)[0]

    def files(self, index: int) -> tuple[Path, ...]:
        """The file of one image, or its files where each holds one of its channels."""
        return tuple(self.root / os.fsdecode(name) for name in self.name(index).split(BETWEEN_BANDS))

    @property
    def files_each(self) -> int:
        """How many files an image is in; 1 for members of archives and items of datasets."""
        return 1 if self.members is not None or self.items is not None or not len(self) else len(self.files(0))

    def source(self, index: int) -> Path | Encoded | Bands:
        """What one image is decoded from: its file, its files, or its bytes where it lies in an archive.

        Raises:
            BrokenImage: an archive that cannot be read at this place, or an item that raises an error.
            UserError: an item that is not an image.
        """
        if self.items is not None:
            return self.items.source(int(self.name(index)))
        if self.members is None:
            files = self.files(index)
            return files[0] if len(files) == 1 else Bands(files[0], files)
        try:
            return Encoded(self.path(index), self.members.read(index))
        except OSError as error:
            raise BrokenImage(self.path(index), error.strerror or one_line(error)) from error

    def name(self, index: int) -> bytes:
        """The name of one image, as the operating system has it; of an item its number."""
        if self.is_stream and not len(self.names):
            return b"%d" % index
        return bytes(self.names[self.offsets[index] : self.offsets[index + 1]])

    def paths(self) -> Iterator[bytes]:
        """All files by absolute path, members of archives by that of the archive; far faster than `path` one by one."""
        if self.items is not None:
            return (os.fsencode(self.path(index)) for index in range(len(self)))
        if self.members is not None:
            members = self.members
            roots = [os.fsencode(archive if "://" in archive else os.path.abspath(archive)) for archive in members.archives]  # noqa: PTH100
            return (os.path.join(roots[members.archive[index]], self.name(index)) for index in range(len(self)))  # noqa: PTH118
        root = os.fsencode(self.root.absolute())
        return (self._absolute(root, self.name(index)) for index in range(len(self)))

    @staticmethod
    def _absolute(root: bytes, name: bytes) -> bytes:
        if BETWEEN_BANDS not in name:
            return os.path.join(root, name)  # noqa: PTH118 - as bytes
        return BETWEEN_BANDS.join(os.path.join(root, part) for part in name.split(BETWEEN_BANDS))  # noqa: PTH118

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageList:
        """The images at these indices, in this order; classes stay as they are."""
        chosen = np.asarray(indices, dtype=np.int64)
        names = [self.name(int(index)) for index in chosen]
        labels = None if self.labels is None else self.labels[chosen]
        targets = None if self.targets is None else self.targets[chosen]
        members = None if self.members is None else self.members.subset(chosen)
        return ImageList.of(
            self.root, names, classes=self.classes, labels=labels, targets=targets, members=members, items=self.items
        )

    def evenly_spread(self, count: int) -> ImageList:
        """`count` images at equal distances in the list, the first among them; all where there are not more.

        Of a stream they are the first ones, at most those that are kept.
        """
        count = min(count, len(self))
        if self.is_stream:
            return self.subset(range(min(count, HEAD)))
        return self.subset([index * len(self) // count for index in range(count)])

    def with_targets(self) -> ImageList:
        """The same images with `targets` in place of `labels`: one class each, as if there could be several."""
        if self.targets is not None:
            return self
        assert self.labels is not None
        targets = np.zeros((len(self), len(self.classes)), dtype=np.bool_)
        targets[np.arange(len(self)), self.labels] = True
        return replace(self, labels=None, targets=targets, known_digest=None)

    def counts(self) -> NDArray[np.int64]:
        """Images of each class."""
        if self.targets is not None:
            return self.targets.sum(axis=0, dtype=np.int64)
        assert self.labels is not None
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    @property
    def digest(self) -> str:
        """Hexadecimal digest of names below their common folder, order, labels and classes.

        Neither moving the whole folder, nor writing its files down in a list, with relative or absolute paths, nor packing
        them into archives changes it.
        """
        return self.known_digest or self.computed_digest()

    def computed_digest(self) -> str:
        """The digest, computed in bounded memory."""
        files = below_common_folder(self)
        shared = common_folder(files)
        labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
        if self.targets is not None:
            labels = b"several" + np.packbits(self.targets).tobytes()
        digest = hashlib.blake2b(digest_size=16)
        digest.update((len(files.names) - shared * len(files)).to_bytes(8, "little"))
        for first, last in _spans(len(files)):
            digest.update(_without_folder(files, first, last, shared))
        digest.update((8 * len(files.offsets)).to_bytes(8, "little"))
        for first, last in _spans(len(files.offsets)):
            digest.update((files.offsets[first:last] - shared * np.arange(first, last)).astype("<i8").tobytes())
        if self.items is not None:
            digest.update(self.items.fingerprint.encode())
        for part in (labels, "\0".join(self.classes).encode("utf-8", "surrogateescape")):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()


def below_common_folder(files: ImageList) -> ImageList:
    """The list with names of one kind: where some are absolute and others are not, all are made absolute."""
    characters = np.frombuffer(files.names, dtype=np.uint8)
    num_absolute = sum(int((characters[files.offsets[a:b]] == ord("/")).sum()) for a, b in _spans(len(files)))
    return ImageList.of(Path("/"), list(files.paths())) if 0 < num_absolute < len(files) else files


def common_folder(files: ImageList) -> int:
    """Length of the beginning, up to and with a slash, that all names share."""
    if not len(files):
        return 0
    characters = np.frombuffer(files.names, dtype=np.uint8)
    first = files.name(0)
    shared = first[:-1].rfind(b"/") + 1
    for start, stop in _spans(len(files)):
        starts = files.offsets[start:stop]
        shared = min(shared, int(np.diff(files.offsets[start : stop + 1]).min()) - 1)
        for place in range(shared):
            if (characters[starts + place] != first[place]).any():
                shared = place
                break
        shared = first[: max(shared, 0)].rfind(b"/") + 1
    return shared


def _without_folder(files: ImageList, first: int, last: int, shared: int) -> bytes:
    """Some consecutive names without the folder that all share."""
    offsets = files.offsets[first : last + 1]
    characters = np.frombuffer(files.names[offsets[0] : offsets[-1]], dtype=np.uint8)
    if not shared:
        return characters.tobytes()
    is_kept = np.ones(len(characters), dtype=np.bool_)
    starts = offsets[:-1] - offsets[0]
    for place in range(shared):
        is_kept[starts + place] = False
    return characters[is_kept].tobytes()


def _spans(total: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + AT_ONCE, total)) for first in range(0, total, AT_ONCE))
