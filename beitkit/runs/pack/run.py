"""`beitkit pack`: copy images into tar shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from beitkit.data.sources.find import find_images, find_labeled
from beitkit.errors import UserError, writing_to
from beitkit.files import MOST_OWN, read_json
from beitkit.runs.pack.config import PackRun
from beitkit.runs.pack.shards import PACKING, following_pack, pack
from beitkit.train.folder import locked
from beitkit.train.journal import say_skipped

MEGABYTE = 10**6


def answer(_: PackRun, out: Path) -> dict[str, Any]:
    """What `--json` prints."""
    skipped = read_json(out / PACKING, MOST_OWN)["skipped"]
    return {"out": out, "images": len(find_images(out)), "shards": len([*out.glob("*.tar")]), "skipped": len(skipped)}


def run(config: PackRun) -> Path:
    """Write shards and their index, or complete them; returns their folder."""
    if config.labels:
        files = find_labeled(config.images, config.split, columns=config.columns)
    else:
        files = find_images(config.images, config.columns.image)
    out = config.out
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        if not (out / PACKING).exists() and any(entry.name != ".lock" and entry.suffix != ".tmp" for entry in out.iterdir()):
            raise UserError(f"--out {out} is not empty and holds no shards of beitkit pack; choose another --out")
        locked(out)

    def said(done: int) -> None:
        print(f"{done} of {len(files)} images", file=sys.stderr)

    packed = pack(files, out, config.shard_size * MEGABYTE, config.read.max_broken, say_skipped, said)
    skipped = f", {packed.skipped} unreadable left out" if packed.skipped else ""
    shards = f"{packed.shards} shard{'' if packed.shards == 1 else 's'}"
    following = following_pack(out, has_labels=config.labels)
    print(f"written: {out} ({packed.images} images in {shards}{skipped}). Next: {following}")
    return out
