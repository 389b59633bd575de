"""`beitkit pack`: copy images into tar shards."""

from __future__ import annotations

import sys
from pathlib import Path

from beitkit.data.sources.find import find_images, find_labeled
from beitkit.errors import UserError, writing_to
from beitkit.runs.pack.config import PackRun
from beitkit.runs.pack.shards import PACKING, pack
from beitkit.system import quoted
from beitkit.train.folder import locked
from beitkit.train.journal import say_skipped

MEGABYTE = 10**6


def run(config: PackRun) -> Path:
    """Write shards and their index, or complete them; returns their folder."""
    files = find_labeled(config.images, config.split) if config.labels else find_images(config.images)
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
    following = f"finetune {quoted(out)} --model ..." if config.labels else f"pretrain {quoted(out)} --tokenizer ..."
    print(f"written: {out} ({packed.images} images in {shards}{skipped}). Next: beitkit {following} --out ...")
    return out
