"""The same image among those that a network is trained on and those that it is judged by: a line that names it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from beitkit.data.sources.contents import shared_contents
from beitkit.data.sources.image_list import ImageList


def note_on_leaks(train: ImageList, val: ImageList, where: str = "validation") -> str | None:
    """How many images of `val`, called after `where`, are byte for byte among the training images; None if none is."""
    shared = shared_contents(train, val)
    if shared is None:
        return f"note: too many files are of one size to look for the same image in training and {where}"
    if not shared:
        return None
    first, same = val.path(shared[0][0]), train.path(shared[0][1])
    found = f"{len(shared):,} of the {len(val):,} {where} images are training images too, byte for byte"
    advice = "beitkit audit shows all, and those that are nearly the same"
    return f"warning: {found} (first {first}, which is {same}), so the result is too good; {advice}"


def name_leaks(trained_on: Iterable[ImageList], files: ImageList) -> None:
    """Say on stderr, for each list of training images, which of those that a network is measured on are among them.

    Nothing is said where these are the training images themselves, which is known.
    """
    seen = {files.digest}
    for train in trained_on:
        if train.digest not in seen and (note := note_on_leaks(train, files, "measured")) is not None:
            print(note, file=sys.stderr)
        seen.add(train.digest)
