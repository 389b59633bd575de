"""What the image files of a run held when it began, compared when it goes on: an order of names says nothing about contents.

Sizes and times of change cost a look at each file; digests read all of them. Files that were only copied or touched have other
times, which is a note; other sizes or digests end the run. Of very many files an evenly spread part is looked at.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError, few
from beitkit.files import MOST_OWN, opened_regular, read_regular
from beitkit.system import write_atomically
from beitkit.train.folder import CONTENTS, RunFolder

MOST_FILES = 100_000
"""Files that are looked at, of each list."""
NAMED = 3
"""Files that a message names."""
GONE = -1
"""Size of a file that cannot be looked at."""


def check_contents(
    folder: RunFolder, lists: Sequence[ImageList], how: Literal["sizes", "digests", "off"], say: Callable[[str], None]
) -> None:
    """Write down what the files hold, or compare it with what was written down; the main process alone.

    Raises:
        UserError: files of other sizes or digests than when the run began.
    """
    if how == "off":
        return
    files = [path for images in lists for path in _files(images)]
    now = _looked_at(files, with_digests=how == "digests")
    before = read_contents(folder.path / CONTENTS)
    if before is None or len(before) != len(now):
        write_contents(folder.path / CONTENTS, now)
        return
    has_digests = bool(before[:, 2:].any())
    what = "digests" if has_digests and how == "digests" else "sizes"
    differing = (before[:, 2:] != now[:, 2:]).any(1) if what == "digests" else before[:, 0] != now[:, 0]
    if differing.any():
        changed = [files[place] for place in np.flatnonzero(differing)]
        raise UserError(
            f"{len(changed)} of {len(files)} files have other {what} than when the run in {folder.path} began "
            f"({few(changed, NAMED)}); put the old ones back, choose another `out`, or continue with `loop.check_contents='off'`"
        )
    touched = [files[place] for place in np.flatnonzero(before[:, 1] != now[:, 1])]
    if touched and what == "sizes":
        say(
            f"note: {len(touched)} of {len(files)} files were written since the run began, with the same sizes "
            f"({few(touched, NAMED)}); if you did not copy them, see whether they are what they were"
        )
    if how == "digests" and not has_digests:
        say("note: the run began without digests; those of now are kept to be compared from here on")
        write_contents(folder.path / CONTENTS, now)


def _files(images: ImageList) -> list[Path]:
    """The files of a list on this machine, of very many some; none of a dataset, whose digest knows of its items."""
    if images.items is not None:
        return []
    if images.members is not None:
        paths = [Path(archive) for archive in images.members.archives]
        return [path for path in paths if path.exists()]  # the others are behind a URL
    step = max(1, -(-len(images) // MOST_FILES))
    return [file for index in range(0, len(images), step) for file in images.files(index)]


def _looked_at(files: Sequence[Path], *, with_digests: bool) -> NDArray[np.int64]:
    """Size, time of change in nanoseconds and, if wanted, digest of each file, (files, 4)."""
    found = np.zeros((len(files), 4), dtype=np.int64)
    for place, path in enumerate(files):
        try:
            status = os.stat(path)  # noqa: PTH116 - a tenth of the time
            found[place, :2] = status.st_size, status.st_mtime_ns
            if with_digests:
                with opened_regular(path) as file:
                    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
                found[place, 2:] = np.frombuffer(digest, dtype="<i8")
        except OSError:
            found[place, 0] = GONE  # training skips and names it
    return found


def read_contents(path: Path) -> NDArray[np.int64] | None:
    """What was written down; None if that cannot be read."""
    try:
        found = np.load(io.BytesIO(read_regular(path, MOST_OWN)), allow_pickle=False)
    except Exception:  # numpy raises nearly every type there is on damaged headers
        return None
    return found if isinstance(found, np.ndarray) and found.dtype == np.int64 and found.shape[1:] == (4,) else None


def write_contents(path: Path, contents: NDArray[np.int64]) -> None:
    """Write down what files hold, (files, 4)."""
    write_atomically(path, lambda file: np.save(file, contents), contents.nbytes)
