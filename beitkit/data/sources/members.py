"""Images inside archives: members of tar archives, rows of Parquet files.

Only positions are stored; an archive is opened when an image is read, in the process that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from beitkit.data.decoding.limit import LARGEST_FILE
from beitkit.data.sources.locations import read_range
from beitkit.data.sources.parquet import read_row

Kind = Literal["tar", "parquet"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class Members:
    """Images in archives of one kind, by index."""

    kind: Kind
    archives: tuple[str, ...]
    """Paths or URLs."""
    archive: NDArray[np.int32]
    """Which archive each image is in."""
    places: NDArray[np.int64]
    """Where, (images, 2): in tar archives first byte and length, in Parquet files row group and row in it."""
    column: str | None = None
    """The column of Parquet files that was named for the images; None takes what its name or its type tells."""

    def subset(self, indices: NDArray[np.int64]) -> Members:
        """The members at these indices, in this order."""
        return replace(self, archive=self.archive[indices], places=self.places[indices])

    def read(self, index: int) -> bytes:
        """The bytes of an image's file.

        Raises:
            OSError: the archive cannot be read, or no longer holds this.
            UserError: what reads the archive is not installed.
        """
        archive, (first, second) = self.archives[self.archive[index]], self.places[index].tolist()
        if self.kind == "parquet":
            return read_row(archive, first, second, self.column)
        if second > LARGEST_FILE:
            raise OSError(f"{second:,} bytes, more than {LARGEST_FILE:,}")
        content = read_range(archive, first, second)
        if len(content) < second:
            raise OSError("the archive is cut short")
        return content
