"""`beitkit tokenize`: compute the visual tokens of stored views in advance."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from beitkit.command.following import beside, command, kept
from beitkit.configs.model import as_pair, by
from beitkit.configs.parts import shard_of
from beitkit.contracts import Batch, precision_name
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import stored_views_stream, token_ids, with_limit_on_broken
from beitkit.data.tokens.cache import HEADER, WHOLE, Shard, TokenCache, bytes_per_view, open_cache, read_key
from beitkit.data.tokens.key import CacheKey
from beitkit.data.tokens.stage import CachedTokens
from beitkit.data.views.image import PretrainView
from beitkit.errors import UserError, writing_to
from beitkit.inference.ray_engine import import_ray, ray_tokens
from beitkit.inference.result import shard_path
from beitkit.inference.stored_views import ViewTokens
from beitkit.interop.load import load_tokenizer
from beitkit.runs.tokenize.config import TokenizeRun
from beitkit.runs.tokenize.shards import found_shards, join_shards
from beitkit.tokenizers.frozen import Encoder, token_encoder
from beitkit.train.folder import locked
from beitkit.train.journal import say_skipped
from beitkit.train.machine.runtime import Runtime, start_runtime

SECONDS_PER_LINE = 10.0
"""Interval of progress lines."""


def run(config: TokenizeRun) -> Path:
    """Make a token cache, a shard of one, or complete it; returns its folder."""
    image_size, patch = as_pair(config.image_size), as_pair(config.patch)
    if any(side % config.patch for side in image_size):
        raise UserError(f"`image_size` {by(image_size)} is not a whole number of patches of `patch` {config.patch}")
    if config.engine == "ray":
        import_ray()
    tokenizer, files = load_tokenizer(config.tokenizer), find_images(config.images, config.columns.image)
    key = CacheKey.of(files, tokenizer, config.view, image_size, patch, config.seed, config.views)
    _make_place(config, files)
    runtime = start_runtime(config.machine)
    encoder = token_encoder(tokenizer, files, key, runtime, _begun(config))
    if how := encoder.describe():
        print(how, file=sys.stderr)
    cache = _opened(config, replace(key, precision=precision_name(encoder.precision)), files)
    dataset = ImageDataset(
        files,
        PretrainView(config.view, image_size, key.token_size, only_tokens=True),
        channels=key.channels,
        value_range=tokenizer.value_range,
        seed=config.seed,
        kind="evaluate",  # an image that cannot be read is not replaced: its tokens would be another's
        smallest=patch,
        views=config.views,
    )
    if config.engine == "ray":
        _fill(cache, _computed_by_ray(cache, dataset, config), config.views)
    else:
        _fill(cache, _computed_here(cache, dataset, encoder, runtime, config), config.views)
    print(
        f"tokens of {cache.num_stored} views of {cache.num_images} images: {cache.path}, "
        f"{bytes_per_view(key):.0f} bytes each. Next: {_next(config)}"
    )
    return cache.path


def answer(_: TokenizeRun, out: Path) -> dict[str, Any]:
    """What `--json` prints."""
    cache = TokenCache(out, read_key(out, None), is_writable=False)
    return {"out": out, "images": cache.num_images, "views": cache.num_stored, "bytes_per_view": bytes_per_view(cache.key)}


def _place(config: TokenizeRun) -> tuple[Path, Shard, Path]:
    """The whole cache, the shard that is to be filled, and its folder."""
    out = config.out if config.out.name else config.out.absolute()  # a name to give shards is needed even for `.`
    shard = WHOLE if config.shard is None else Shard(*shard_of(config.shard))
    return out, shard, shard_path(out, *shard, is_whole=config.shard is None)


def _begun(config: TokenizeRun) -> CacheKey | None:
    """Key of an existing cache or of its shards; its precision is kept."""
    if config.machine.precision == "float32":
        return None  # then one in bfloat16 is another
    out, _, path = _place(config)
    there = [path] if config.shard is not None or (path / HEADER).exists() else list(found_shards(out).values())
    return next((read_key(path, None) for path in there if (path / HEADER).exists()), None)


def _make_place(config: TokenizeRun, files: ImageList) -> None:
    """Make the folder that is filled, and lock it while the process lives; refuses one that cannot be."""
    out, shard, path = _place(config)
    if config.shard is not None and (out / HEADER).exists():
        raise UserError(f"`out` {out} holds a token cache already; leave `shard` out to complete it, or choose another `out`")
    if shard.shards > len(files):
        raise UserError(f"`shard` {shard} of {len(files)} images leaves shards empty; give at most {len(files)} shards")
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
        if not (path / HEADER).exists() and any(_is_foreign(entry) for entry in path.iterdir()):
            raise UserError(f"`out` {path} is not empty and holds no token cache; choose another `out`, or remove it yourself")
        locked(path)


def _opened(config: TokenizeRun, key: CacheKey, files: ImageList) -> TokenCache:
    """The cache to fill, made of its shards where they are there, or the shard to fill."""
    out, shard, path = _place(config)
    with writing_to(path):
        if config.shard is None and not (out / HEADER).exists():
            join_shards(out, key, files)
        elif config.shard is None and (unread := found_shards(out)):
            print(
                f"{out} is a cache already, so its shards beside it are not read; remove {next(iter(unread.values()))} "
                "and the others yourself",
                file=sys.stderr,
            )
        return open_cache(path, key, files, is_writable=True, shard=shard)


def _is_foreign(entry: Path) -> bool:
    """Whether a file is not left over from a start that was killed before the cache was created."""
    return entry.name != ".lock" and entry.suffix not in (".npy", ".tmp")


def _computed_here(
    cache: TokenCache, dataset: ImageDataset, encoder: Encoder, runtime: Runtime, config: TokenizeRun
) -> Iterator[Batch]:

    def encode(images: torch.Tensor) -> torch.Tensor:
        return token_ids(images.to(runtime.device), encoder, cache.key.grid)

    def is_wanted(index: int, view: int) -> bool:
        return not cache.is_stored(index, view)

    stream = stored_views_stream(dataset, config.batch_size, is_wanted, cache.missing(), workers=config.machine.workers)
    return CachedTokens(cache, encode, config.batch_size).tokenized(_counted(stream, dataset, config))


def _computed_by_ray(cache: TokenCache, dataset: ImageDataset, config: TokenizeRun) -> Iterator[Batch]:
    """Compute missing tokens on a Ray cluster and store them in this process, the only writer."""
    machine = replace(config.machine, precision=cache.key.precision)
    compute = ViewTokens(
        tokenizer=config.tokenizer, key=cache.key, batch_size=config.batch_size, machine=machine, read=config.read
    )
    wanted = [(index, cache.missing_views(index)) for index in cache.missing()]
    for batch in _counted(ray_tokens(dataset.files, wanted, compute), dataset, config):
        for index in batch["broken"].tolist():
            if index >= 0:
                cache.set_unreadable(index)
        is_read = batch["broken"] < 0
        cache.put(batch["index"][is_read], batch["view"][is_read], batch["tokens"][is_read])
        yield batch


def _counted(stream: Iterable[Batch], dataset: ImageDataset, config: TokenizeRun) -> Iterator[Batch]:
    return with_limit_on_broken(stream, dataset, config.read.max_broken, say_skipped, None)


def _fill(cache: TokenCache, batches: Iterable[Batch], views: int) -> None:
    total, before = views * cache.num_images, cache.num_stored
    start = said = time.monotonic()
    try:
        for _ in batches:
            now = time.monotonic()
            if now - said > SECONDS_PER_LINE:
                said = now
                stored = cache.num_stored
                print(f"{stored} of {total} views, {(stored - before) / (now - start):.0f} a second", file=sys.stderr)
    finally:
        cache.flush()


def _next(config: TokenizeRun) -> str:
    if config.shard is not None:
        same = kept(config, "image_size", "patch", "seed", "batch_size", "engine", "view", "read", "columns")
        joining = command("tokenize", config.images, tokenizer=config.tokenizer, out=config.out, views=config.views, **same)
        return f"{joining} (when all shards are done, to join them)"
    return command(
        "pretrain",
        config.images,
        tokenizer=config.tokenizer,
        tokens=config.out,
        out=beside(config.tokenizer, "pre"),
        **kept(config, "image_size", "patch", "seed", "view", "columns", "read.max_broken"),
    )
