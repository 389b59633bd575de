"""How large the pictures of a list are, without reading them all."""

from __future__ import annotations

import random
import statistics

from beitkit.data.decoding.decode import BrokenPicture, stored_size
from beitkit.data.sources.find import PictureList
from beitkit.errors import UserError

SAMPLE = 64
"""Pictures whose headers are read."""


def median_side(files: PictureList, seed: int) -> int:
    """Median of the shorter sides, in pixels, of a sample drawn by `seed`.

    Raises:
        UserError: if none of the sample can be read.
    """
    sides = []
    for index in random.Random(seed).sample(range(len(files)), min(SAMPLE, len(files))):
        try:
            sides.append(min(stored_size(files.source(index))))
        except BrokenPicture:
            continue  # training counts and names those
    if not sides:
        raise UserError(f"none of the first pictures looked at in {files.root} can be read; see what its files hold")
    return round(statistics.median(sides))
