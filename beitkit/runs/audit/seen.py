"""Every image is looked at once, by several processes; then the odd ones and those that are twice there are found."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.model import Pair
from beitkit.data.decoding.decode import Bands, Encoded
from beitkit.data.sources.contents import Place, same_contents
from beitkit.data.sources.image_list import ImageList
from beitkit.data.workers import read_batches
from beitkit.runs.audit.alike import descriptors, near_pairs
from beitkit.runs.audit.look import LOOK, Looker, unpacked
from beitkit.runs.audit.parts import AuditedPart
from beitkit.runs.audit.result import BrokenFile, SamePair
from beitkit.system import usable_cores

AT_ONCE = 16
"""Images that a process looks at before it hands them over."""
FEW = 200
"""So few images are looked at in the main process."""
MOST_WORKERS = 16
SAY_EVERY = 10.0
"""Seconds between two lines about how far it is."""
BLANK = 8
"""Levels of 256 that the reduced version of a blank image goes through at most."""


class Seen(NamedTuple):
    """All images, part after part; `table` has a row of `LOOK` for each."""

    lists: Sequence[ImageList]
    names: tuple[str, ...]
    """Of the parts."""
    part: NDArray[np.int64]
    position: NDArray[np.int64]
    """Which part an image is in, and where."""
    table: np.ndarray
    formats: dict[str, int]
    kinds: dict[str, int]
    kind: NDArray[np.object_]
    """Of each image."""
    broken: tuple[BrokenFile, ...]
    counts: NDArray[np.int64]
    """How many pixels of 8-bit images have each value."""

    def path(self, place: int) -> Path:
        """The file of an image."""
        return self.lists[self.part[place]].path(int(self.position[place]))

    def source(self, place: int) -> Path | Encoded | Bands:
        """What an image is read from."""
        return self.lists[self.part[place]].source(int(self.position[place]))

    def odd(self, size: Pair, patch: int) -> dict[str, list[int]]:
        """Places of the odd images by kind (fields of `ImageAudit`), for a network's image size and patch."""
        table, kind = self.table, self.kind.astype(str)
        is_read, short = table["is_read"], np.minimum(table["height"], table["width"])
        chosen = {
            "blank": self.is_blank,
            "small": is_read & ((table["height"] < size[0]) | (table["width"] < size[1])),
            "tiny": is_read & (short < patch),
            "turned": table["is_turned"],
            "gray_as_color": is_read & ~table["is_deep"] & table["is_gray"] & table["is_color_file"] & ~self.is_blank,
            "cmyk": np.char.find(kind, "CMYK") >= 0,
            "transparent": np.char.find(kind, "transparency") >= 0,
        }
        return {name: np.flatnonzero(where).tolist() for name, where in chosen.items()}

    def label(self, place: int) -> tuple[str, ...] | None:
        """The classes of an image; None without labels."""
        files, index = self.lists[self.part[place]], int(self.position[place])
        if files.labels is not None:
            return (files.classes[files.labels[index]],)
        if files.targets is not None:
            return tuple(files.classes[label] for label in np.flatnonzero(files.targets[index]))
        return None

    def pair(self, place: int, other: int, distance: float) -> SamePair:
        """Two images that are alike."""
        names = [self.names[self.part[one]] for one in (place, other)]
        return SamePair(self.path(place), names[0], self.path(other), names[1], distance)

    @property
    def is_blank(self) -> NDArray[np.bool_]:
        """Which images are nearly of one color, measured by the range that all use."""
        table = self.table
        shown = table["thumbnail"].reshape(len(table), -1).astype(np.int64)
        span = shown.max(axis=1) - shown.min(axis=1)
        is_8_bit = table["is_read"] & ~table["is_deep"]
        used = used_range(self.counts)
        blank = is_8_bit & (span <= BLANK * (min(1.0, (used[1] - used[0] + 1) / 256) if used else 1.0))
        deep = table["is_read"] & table["is_deep"]
        if deep.any():
            whole = table["high"][deep].max() - table["low"][deep].min()
            blank |= deep & (table["high"] - table["low"] <= whole * BLANK / 256)
        return blank


def used_range(counts: NDArray[np.int64]) -> tuple[int, int] | None:
    """The values of 8-bit images but for the lowest and the highest thousandth; None without any."""
    total = counts.sum()
    if not total:
        return None
    low, high = np.searchsorted(np.cumsum(counts), [total * 0.001, total * 0.999])
    return int(low), int(min(high, 255))


def look_at_all(parts: Sequence[AuditedPart], workers: int) -> Seen:
    """Read every image once."""
    lists = [part.files for part in parts]
    tables, formats, kinds, broken = [], [], [], []
    counts = np.zeros(256, dtype=np.int64)
    total, done, said = sum(map(len, lists)), 0, time.perf_counter()
    for files in lists:
        chosen = workers if workers >= 0 else min(MOST_WORKERS, usable_cores())
        chosen = 0 if workers < 0 and (len(files) <= FEW or chosen == 1) else chosen
        starts = range(0, len(files), AT_ONCE)
        batches = ([(0, index, 0) for index in range(first, min(first + AT_ONCE, len(files)))] for first in starts)
        with closing(read_batches(Looker(files), batches, chosen)) as read:
            for batch in read:
                looks = unpacked(batch)
                tables.append(looks.table)
                formats += looks.formats
                kinds += looks.kinds
                broken += [BrokenFile(files.path(index), reason) for index, reason in looks.broken]
                counts += looks.counts
                done += len(looks.table)
                if time.perf_counter() - said > SAY_EVERY:
                    said = time.perf_counter()
                    print(f"looked at {done:,} of {total:,} images", file=sys.stderr)
    return Seen(
        lists=lists,
        names=tuple(part.name for part in parts),
        part=np.repeat(np.arange(len(lists)), [len(files) for files in lists]),
        position=np.concatenate([np.arange(len(files)) for files in lists]),
        table=np.concatenate(tables) if tables else np.zeros(0, dtype=LOOK),
        formats=dict(Counter(filter(None, formats)).most_common()),
        kinds=dict(Counter(filter(None, kinds)).most_common()),
        kind=np.array(kinds, dtype=object),
        broken=tuple(broken),
        counts=counts,
    )


class Alike(NamedTuple):
    """Images that are there more than once, by their places among all."""

    exact: list[tuple[int, ...]]
    near: list[tuple[int, int, float]]
    """The earlier one first; of files that are the same only the first takes part."""

    def pairs(self) -> list[tuple[int, int, float]]:
        """Pairs of all that are alike: of the same files each with the first, near duplicates with each that is the same."""
        same = {group[0]: group for group in self.exact}
        found = [(group[0], other, 0.0) for group in self.exact for other in group[1:]]
        for one, two, distance in self.near:
            found += [(one, other, distance) for other in same.get(two, (two,))]
            found += [(other, two, distance) for other in same.get(one, ())[1:]]
        return found


def find_alike(seen: Seen, near: float) -> Alike:
    """The same files, and near duplicates up to this distance."""
    table = seen.table
    sizes, group = np.unique(table["bytes"], return_inverse=True)
    thumbs = table["thumbnail"].reshape(len(table), -1)
    by_look: dict[tuple[int, bytes], list[Place]] = {}
    is_repeated = (np.bincount(group, minlength=len(sizes)) > 1)[group] & table["is_read"]
    place_of: dict[Place, int] = {}
    for place in np.flatnonzero(is_repeated).tolist():
        where = Place(int(seen.part[place]), int(seen.position[place]))
        place_of[where] = place
        by_look.setdefault((int(group[place]), thumbs[place].tobytes()), []).append(where)
    candidates = [same for same in by_look.values() if len(same) > 1]
    exact = [tuple(sorted(place_of[where] for where in same)) for same in same_contents(list(seen.lists), candidates)]
    pairs: list[tuple[int, int, float]] = []
    if near > 0:
        is_used = table["is_read"] & ~seen.is_blank
        for same in exact:
            is_used[list(same[1:])] = False
        used = np.flatnonzero(is_used)
        found, distances = near_pairs(descriptors(table["thumbnail"][used]), near)
        pairs = [(int(used[one]), int(used[two]), float(far)) for (one, two), far in zip(found, distances, strict=True)]
    return Alike(sorted(exact), pairs)
