"""`beitkit tokenize`: compute the visual tokens of stored views once."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from beitkit.configs.verbs import TokenizeRun
from beitkit.data.cached_tokens import CachedTokens
from beitkit.data.files import PictureList, find_pictures
from beitkit.data.stream import PictureDataset, counted_broken, stored_views_stream, token_ids
from beitkit.data.token_cache import HEADER, CacheKey, TokenCache, bytes_per_view, open_cache
from beitkit.data.views import PretrainView
from beitkit.errors import UserError
from beitkit.interop.load import load_tokenizer
from beitkit.runs.pretrain_setup import key_of
from beitkit.system import quoted
from beitkit.train.folder import locked
from beitkit.train.runtime import start_runtime

SECONDS_PER_LINE = 10.0
"""How often it is said how far it is."""


def run(config: TokenizeRun) -> Path:
    """Make a token cache or complete it; returns its folder."""
    if config.image_size % config.patch:
        raise UserError(f"--image-size {config.image_size} is not a whole number of patches of --patch {config.patch}")
    runtime = start_runtime(config.machine)
    tokenizer, files = load_tokenizer(config.tokenizer), find_pictures(config.images)
    image_size, patch = (config.image_size, config.image_size), (config.patch, config.patch)
    key = key_of(files, tokenizer, config.view, image_size, patch, config.seed, config.views)
    cache = _opened(config.out, key, files)
    tokenizer.to(runtime.device)

    def encode(images: torch.Tensor) -> torch.Tensor:
        return token_ids(images.to(runtime.device), tokenizer, key.grid)

    dataset = PictureDataset(
        files,
        PretrainView(config.view, image_size, key.token_size),
        channels=key.channels,
        seed=config.seed,
        smallest=patch,
        views=config.views,
    )
    _fill(CachedTokens(cache, encode, config.batch_size), dataset, config)
    print(
        f"tokens of {cache.num_stored} views of {len(files)} pictures: {config.out}, {bytes_per_view(key):.0f} bytes each. "
        f"Next: beitkit pretrain {quoted(config.images)} --tokenizer {quoted(config.tokenizer)} --tokens {quoted(config.out)} "
        "--out ..."
    )
    return config.out


def _opened(path: Path, key: CacheKey, files: PictureList) -> TokenCache:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / HEADER).exists() and any(_is_foreign(entry) for entry in path.iterdir()):
            raise UserError(f"--out {path} is not empty and holds no token cache; choose another --out, or remove it yourself")
        locked(path)
        return open_cache(path, key, files, is_writable=True)
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}); choose another --out") from None


def _is_foreign(entry: Path) -> bool:
    """Whether a file is none that a start leaves behind which was killed before the cache was made."""
    return entry.name != ".lock" and entry.suffix not in (".npy", ".tmp")


def _fill(cached: CachedTokens, dataset: PictureDataset, config: TokenizeRun) -> None:
    """Compute what is missing, and say from time to time how far it is."""
    cache = cached.cache
    total = config.views * len(dataset)

    def is_wanted(index: int, view: int) -> bool:
        return not cache.is_stored(index, view)

    def report(file: Path, reason: str) -> None:
        print(f"skipped {file}: {reason}", file=sys.stderr)

    stream = stored_views_stream(dataset, config.batch_size, is_wanted, cache.missing(), workers=config.machine.workers)
    stream = counted_broken(stream, dataset, config.read.max_broken, report, None)
    start = said = time.monotonic()
    try:
        for _ in cached.tokenized(stream):
            now = time.monotonic()
            if now - said > SECONDS_PER_LINE:
                said = now
                speed = cached.encoded / (now - start)
                print(f"{cache.num_stored} of {total} views, {speed:.0f} a second", file=sys.stderr)
    finally:
        cache.flush()
