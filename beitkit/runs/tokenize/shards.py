"""Token caches filled by several machines, one shard each, and joining them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from beitkit.data.sources.image_list import ImageList
from beitkit.data.tokens.cache import HEADER, Shard, TokenCache, join_caches, open_cache
from beitkit.data.tokens.key import CacheKey
from beitkit.errors import UserError
from beitkit.inference.result import shard_path


def found_shards(out: Path) -> dict[Shard, Path]:
    """The shards of a cache that lie beside it."""
    name = re.compile(rf"{re.escape(out.stem)}-([0-9]{{5}})-of-([0-9]{{5}}){re.escape(out.suffix)}")
    entries = [(name.fullmatch(entry.name), entry) for entry in out.parent.iterdir()] if out.parent.is_dir() else []
    found = {Shard(int(match[1]), int(match[2])): entry for match, entry in entries if match is not None and entry.is_dir()}
    return dict(sorted(found.items()))


def join_shards(out: Path, key: CacheKey, files: ImageList) -> None:
    """Make a cache of its shards, if there are any, and remove them then.

    Raises:
        UserError: a shard is missing, not complete, of other shards, or stale.
    """
    found = found_shards(out)
    if not found:
        return
    counts = sorted({shard.shards for shard in found})
    if len(counts) > 1:
        raise UserError(
            f"beside `out` {out} lie shards of {' and of '.join(map(str, counts))}; remove those that you do not want to join"
        )
    caches, lacking = _opened(out, key, files, counts[0])
    if lacking:
        raise UserError(
            f"`out` {out} cannot be joined: {', '.join(lacking)}; give this command with `shard` {lacking[0].split()[1]}, or "
            "remove the shards to compute everything here"
        )
    join_caches(out, key, files, caches)
    for cache in caches:
        shutil.rmtree(cache.path)


def _opened(out: Path, key: CacheKey, files: ImageList, shards: int) -> tuple[list[TokenCache], list[str]]:
    """The complete shards, and what is wrong with the others."""
    caches, lacking = [], []
    for shard in (Shard(number, shards) for number in range(1, shards + 1)):
        path = shard_path(out, *shard, is_whole=False)
        if not (path / HEADER).exists():
            lacking.append(f"shard {shard} is missing")
            continue
        cache = open_cache(path, key, files, is_writable=False, shard=shard)
        if not cache.is_complete:
            lacking.append(f"shard {shard} has {cache.num_stored} of {key.views * cache.num_images} views")
            continue
        caches.append(cache)
    return caches, lacking
