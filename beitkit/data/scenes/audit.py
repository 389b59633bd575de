"""Audit of label maps before training: errors for unusable masks, statistics of the rest.

Every mask is decoded and compared with its image's size (of more than 4000 masks, a random sample). An unusable mask is an error
that names it; anomalies, such as a class that never occurs or an image without a mask, are reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beitkit.contracts import IGNORED
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.decoding.reading import header_of
from beitkit.data.scenes.scenes import MOST_READ, Scenes, sampled
from beitkit.errors import UserError, few

NAMED = 3  # files that a note names


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the label maps hold."""

    classes: tuple[str, ...]
    pairs: int
    """Pairs there are."""
    read: int
    """Pairs that were looked at; the counts below are of these."""
    pixels: tuple[int, ...]
    """Pixels of each class."""
    images: tuple[int, ...]
    """Images that show each class."""
    ignored: int
    """Pixels that do not count."""
    uncounted: tuple[Path, ...]
    """Images whose pixels are all ignored."""
    turned: int
    """Images that EXIF turns, with a mask from before the turn, which is turned along."""
    taken_upright: tuple[Path, ...]
    """Images that EXIF turns, with a mask whose size does not tell whether it is from before the turn."""
    unreadable: tuple[Path, ...]
    """Images, with a mask, that cannot be opened."""
    images_without_mask: tuple[Path, ...]
    masks_without_image: tuple[Path, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the counted pixels that each class has; they add up to 1."""
        return tuple(count / sum(self.pixels) for count in self.pixels)

    @property
    def ignored_share(self) -> float:
        """Share of all pixels that do not count."""
        return self.ignored / (self.ignored + sum(self.pixels))

    @property
    def never_seen(self) -> tuple[str, ...]:
        """Classes that no image shows."""
        return tuple(name for name, count in zip(self.classes, self.pixels, strict=True) if count == 0)

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: class, share of the counted pixels, images that show it; what is ignored comes last."""
        table = [
            (name, f"{share:.2%}", str(count)) for name, share, count in zip(self.classes, self.shares, self.images, strict=True)
        ]
        return [*table, ("(ignored)", f"{self.ignored_share:.2%} of all", "")]

    def notes(self) -> tuple[str, ...]:
        """One sentence for everything that is odd; none where nothing is."""
        told = (
            (self.read < self.pairs, f"{self.read} of {self.pairs} masks were read, drawn by seed"),
            (bool(self.never_seen), f"never seen: {', '.join(self.never_seen)}"),
            (bool(self.uncounted), f"images without a counted pixel: {_files(self.uncounted)}"),
            (bool(self.unreadable), f"images that cannot be opened: {_files(self.unreadable)}"),
            (bool(self.images_without_mask), f"images without a mask, left out: {_files(self.images_without_mask)}"),
            (bool(self.masks_without_image), f"masks without an image, left out: {_files(self.masks_without_image)}"),
            (self.turned > 0, f"masks turned along with their images by EXIF: {self.turned}"),
            (
                bool(self.taken_upright),
                f"images that EXIF turns, with a mask taken as upright already: {_files(self.taken_upright)}",
            ),
        )
        return tuple(text for is_so, text in told if is_so)


def audit(scenes: Scenes, *, seed: int = 0, limit: int = MOST_READ) -> Audit:
    """Count what the label maps hold.

    Raises:
        UserError: masks that cannot be read, have another size than their image or values that mean nothing (names the
            first one, and how many others there are); no counted pixel anywhere.
    """
    chosen = sampled(len(scenes), limit, seed, "audit")
    counts = np.zeros(IGNORED + 1, dtype=np.int64)
    images = np.zeros(IGNORED + 1, dtype=np.int64)
    faults: list[BrokenImage] = []
    uncounted: list[Path] = []
    upright: list[Path] = []
    unreadable: list[Path] = []
    turned = 0
    for index in chosen:
        image = scenes.files.path(index)
        try:
            header = scenes.header(index)
        except BrokenImage:
            unreadable.append(image)
            continue
        try:
            label_map = scenes.label_map(index)
        except BrokenImage as error:
            faults.append(error)
            continue
        found = np.bincount(np.asarray(label_map).ravel(), minlength=IGNORED + 1)
        counts += found
        images += found > 0
        if found[IGNORED] == found.sum():
            uncounted.append(image)
        if header.turn is not None:
            # Sideways, the sizes tell; a mask of the upright size needs no turn.
            if header.stored == header.upright:
                upright.append(image)
            elif header_of(scenes.masks.source(index)).upright == header.stored:
                turned += 1
    _refuse(scenes, faults, len(chosen), counts, len(unreadable))
    classes = len(scenes.classes)
    return Audit(
        classes=scenes.classes,
        pairs=len(scenes),
        read=len(chosen),
        pixels=tuple(counts[:classes].tolist()),
        images=tuple(images[:classes].tolist()),
        ignored=int(counts[IGNORED]),
        uncounted=tuple(uncounted),
        turned=turned,
        taken_upright=tuple(upright),
        unreadable=tuple(unreadable),
        images_without_mask=scenes.images_without_mask,
        masks_without_image=scenes.masks_without_image,
    )


def _refuse(scenes: Scenes, faults: list[BrokenImage], read: int, counts: np.ndarray, unreadable: int) -> None:
    if faults:
        some = f"{len(faults)} of {read} masks cannot be used, the first one is " if len(faults) > 1 else "the mask "
        raise UserError(f"{some}{faults[0].path}: {faults[0].reason}")
    if unreadable == read:
        raise UserError(f"none of the {read} images can be opened, the first one is {scenes.files.path(0)}")
    if counts[:IGNORED].sum() == 0:
        raise UserError(
            f"every pixel of the {read} masks in {scenes.masks.root} is ignored, so there is nothing to learn; "
            f"look at what {scenes.code.source} ignores"
        )


def _files(paths: tuple[Path, ...]) -> str:
    return f"{len(paths)} ({few([path.name for path in paths], NAMED)})"
