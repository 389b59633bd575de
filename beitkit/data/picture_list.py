"""The list of pictures that everything reads from: flat, indexed, with labels where there are any.

All names are one block of bytes, not a Python list: worker processes share it without copying, and ten million names cost
their bytes and eight more each. Names that are not valid UTF-8 are kept as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PictureList:
    """Pictures by index, with their classes if they have any. Build one with `find_pictures` or `find_labelled`."""

    root: Path
    """What the names are relative to."""
    names: bytes
    """All names, one after the other."""
    offsets: NDArray[np.int64]
    """Where each name begins in `names`, and at the end where the last one stops; one longer than the list."""
    labels: NDArray[np.int64] | None = None
    """Index into `classes` per picture, where each has one."""
    classes: tuple[str, ...] = ()
    targets: NDArray[np.bool_] | None = None
    """Which classes each picture has, (pictures, classes), in place of `labels` where it may have none, one or several."""

    @classmethod
    def of(
        cls,
        root: Path,
        names: Sequence[bytes],
        *,
        classes: Sequence[str] = (),
        labels: NDArray[np.int64] | None = None,
        targets: NDArray[np.bool_] | None = None,
    ) -> PictureList:
        """A list of these names."""
        offsets = np.zeros(len(names) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in names], out=offsets[1:])
        return cls(root, b"".join(names), offsets, labels, tuple(classes), targets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def path(self, index: int) -> Path:
        """The file of one picture."""
        return self.root / os.fsdecode(self.name(index))

    def name(self, index: int) -> bytes:
        """The name of one picture, as the operating system has it."""
        return self.names[self.offsets[index] : self.offsets[index + 1]]

    def paths(self) -> Iterator[bytes]:
        """All files by absolute path; far faster than `path` one by one."""
        root = os.fsencode(self.root.absolute())
        return (os.path.join(root, self.name(index)) for index in range(len(self)))  # noqa: PTH118 - as bytes

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> PictureList:
        """The pictures at these indices, in this order; classes stay as they are."""
        chosen = np.asarray(indices, dtype=np.int64)
        names = [self.name(int(index)) for index in chosen]
        labels = None if self.labels is None else self.labels[chosen]
        targets = None if self.targets is None else self.targets[chosen]
        return PictureList.of(self.root, names, classes=self.classes, labels=labels, targets=targets)

    def with_targets(self) -> PictureList:
        """The same pictures with `targets` in place of `labels`: one class each, as if there could be several."""
        if self.targets is not None:
            return self
        assert self.labels is not None
        targets = np.zeros((len(self), len(self.classes)), dtype=np.bool_)
        targets[np.arange(len(self)), self.labels] = True
        return replace(self, labels=None, targets=targets)

    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class."""
        if self.targets is not None:
            return self.targets.sum(axis=0, dtype=np.int64)
        assert self.labels is not None
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    @property
    def digest(self) -> str:
        """Hexadecimal digest of names below their common folder, order, labels and classes.

        Neither moving the whole folder nor writing its files down in a list, with relative or absolute paths, changes it.
        """
        digest = hashlib.blake2b(digest_size=16)
        names, offsets = _below_common_folder(self)
        labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
        if self.targets is not None:
            labels = b"several" + np.packbits(self.targets).tobytes()
        classes = "\0".join(self.classes).encode("utf-8", "surrogateescape")
        for part in (names, offsets.astype("<i8").tobytes(), labels, classes):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()


def _below_common_folder(files: PictureList) -> tuple[bytes, NDArray[np.int64]]:
    """Names and offsets without the folder that all files share."""
    names, offsets = files.names, files.offsets
    starts = offsets[:-1]
    if not len(starts):
        return names, offsets
    characters = np.frombuffer(names, dtype=np.uint8)
    is_absolute = characters[starts] == ord("/")
    if is_absolute.any() and not is_absolute.all():
        return _below_common_folder(PictureList.of(Path("/"), list(files.paths())))
    first = names[: offsets[1]]
    shared = 0
    for place in range(min(len(first) - 1, int(np.diff(offsets).min()) - 1)):
        if (characters[starts + place] != first[place]).any():
            break
        if first[place] == ord("/"):
            shared = place + 1
    if not shared:
        return names, offsets
    is_kept = np.ones(len(characters), dtype=np.bool_)
    for place in range(shared):
        is_kept[starts + place] = False
    return characters[is_kept].tobytes(), offsets - shared * np.arange(len(offsets))
