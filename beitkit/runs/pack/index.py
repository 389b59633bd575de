"""`beitkit index`: write the index of a list of images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from beitkit.data.sources.archives import archives_at
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.folders import say_left_out, sorted_walk
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.index import write_index
from beitkit.data.sources.locations import is_url, location
from beitkit.errors import writing_to
from beitkit.runs.pack.config import IndexRun
from beitkit.runs.pack.shards import following_pack


def answer(_: IndexRun, out: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {"out": out, "images": len(find_images(out))}


def run(config: IndexRun) -> Path:
    """Write an index; returns its path."""
    images, out = config.images, config.out
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if config.labels:
            total = write_index(out, find_labeled(images, config.split, columns=config.columns))
        elif archives_at(images) is None and not is_url(location(images)) and images.is_dir():
            left_out: Counter[str] = Counter()
            total = write_index(out, ImageList.of(images, []), sorted_walk(images, out.parent, left_out))
            say_left_out(images, left_out)
        else:
            total = write_index(out, find_images(images, config.columns.image))
    print(f"written: {out} ({total} images). Next: {following_pack(out, has_labels=config.labels)}")
    return out
