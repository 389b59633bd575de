"""Time and memory of opening and reading a list of ten million images: the figures of docs/guide/data.md.

    python -m benchmarks.image_list [--images 10000000] [--workers 4]

The names are generated, the files behind them do not exist: the view is of no image, so what is measured is the list and its
order. Everything is measured in fresh processes, once with the index and once with the same names in memory.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BATCHES = 200
BATCH = 256


def names(total: int) -> Iterator[bytes]:
    """Sorted names as photo archives have them, 38 bytes each."""
    return (b"2024/%05d/IMG_%08d_%010x.jpg" % (i // 1000, i, (i * 0x9E3779B97F4A7C15) % 2**40) for i in range(total))


def memory(process: int | str = "self") -> tuple[float, float]:
    """Resident and proportional memory of a process, in MB; the second counts a page that n processes share as 1/n."""
    fields = dict(line.split(":") for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Rss"].split()[0]) / 1000, int(fields["Pss"].split()[0]) / 1000


def write(path: Path, total: int) -> None:
    """The index, in this process."""
    from beitkit.data.sources.image_list import ImageList
    from beitkit.data.sources.index import write_index

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    write_index(path, ImageList.of(path.parent, []), names(total))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    size = path.stat().st_size
    print(f"index of {total:,} names: {size / 1e6:.0f} MB, {size / total:.1f} bytes a name, written in "
          f"{time.monotonic() - start:.1f} s with {grown:.0f} MB of memory (peak above start)", flush=True)  # fmt: skip


def measure(kind: str, path: Path, total: int, workers: int) -> None:
    """Open the list, and let workers look up the names of every batch; in this process."""
    import torch

    from beitkit.data.dataset import ImageDataset
    from beitkit.data.sources.find import find_images
    from beitkit.data.sources.image_list import ImageList
    from beitkit.data.stream import training_stream

    class Looked(ImageDataset):
        def read(self, epoch: int, index: int, repeat: int = 0) -> dict[str, torch.Tensor]:
            return {"index": torch.tensor(len(self.files.path(index).name))}

    before, start = memory()[0], time.monotonic()
    files = find_images(path) if kind == "index" else ImageList.of(path.parent, list(names(total)))
    opened = time.monotonic() - start
    digest = files.digest
    started = time.monotonic() - start
    after_open = memory()[0]
    stream = training_stream(Looked(files, lambda *_: {}), BATCH, workers=workers)
    next(stream)
    children = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    first = [memory(child) for child in children]
    for _ in itertools.islice(stream, BATCHES):
        pass
    last = [memory(child) for child in children]
    print(
        f"{kind}: opened in {opened:.2f} s, with the digest ({digest[:8]}) {started:.2f} s; "
        f"main process {before:.0f} -> {after_open:.0f} MB resident, {memory()[0]:.0f} with the epoch's order; "
        f"workers, resident {shown(first, 0)} -> {shown(last, 0)} MB, proportional {shown(first, 1)} -> {shown(last, 1)} MB "
        f"after {BATCHES} batches of {BATCH}",
        flush=True,
    )
    stream.close()


def shown(figures: list[tuple[float, float]], place: int) -> str:
    return "/".join(f"{figure[place]:.0f}" for figure in figures)


def main() -> None:
    """Write the index, then measure both lists, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", choices=("write", "index", "memory"))
    parser.add_argument("--path", type=Path)
    given = parser.parse_args()
    if given.only == "write":
        return write(given.path, given.images)
    if given.only is not None:
        return measure(given.only, given.path, given.images, given.workers)
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("write", "index", "memory"):
            command = [sys.executable, __file__, "--only", kind, "--path", f"{folder}/photos.index"]
            subprocess.run([*command, "--images", str(given.images), "--workers", str(given.workers)], check=True)
    return None


if __name__ == "__main__":
    main()
