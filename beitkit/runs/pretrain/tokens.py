"""Token cache of a pre-training run: the given one, or one in its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from beitkit.configs.train import resolved
from beitkit.contracts import Batch, precision_name
from beitkit.data.dataset import ImageDataset
from beitkit.data.stream import token_ids, training_stream
from beitkit.data.tokens.cache import HEADER, TokenCache, bytes_per_view, open_cache, read_key
from beitkit.data.tokens.key import CacheKey
from beitkit.data.tokens.stage import CachedTokens
from beitkit.errors import UserError
from beitkit.runs.pretrain.setup import Setup, view_options
from beitkit.system import quoted
from beitkit.tokenizers.frozen import Encoder
from beitkit.train.folder import RunFolder, locked
from beitkit.train.machine.runtime import Runtime


def begun_cache(setup: Setup, folder: RunFolder) -> CacheKey | None:
    """Key of an existing token cache of the run; None if there is none.

    Raises:
        UserError: if its key cannot be read.
    """
    path = _path(setup, folder)
    return read_key(path) if setup.views is not None and (path / HEADER).exists() else None


def cached_tokens(setup: Setup, encoder: Encoder | None, folder: RunFolder, runtime: Runtime) -> CachedTokens | None:
    """The run's token cache, opened and checked; None without stored views.

    Raises:
        UserError: if the cache is stale, or incomplete and there are several ranks, which cannot fill it together.
    """
    if setup.views is None or encoder is None:
        return None
    path, key = _path(setup, folder), replace(setup.cache_key(setup.views), precision=precision_name(encoder.precision))
    try:
        is_there = setup.config.tokens is not None or (path / HEADER).exists()
        cache = open_cache(path, key, setup.files, is_writable=False) if is_there else None
        if cache is None or not cache.is_complete:
            _check_alone(setup, path, runtime)
            path.mkdir(parents=True, exist_ok=True)
            locked(path, "tokens")
            cache = open_cache(path, key, setup.files, is_writable=True)
    except PermissionError as error:
        raise UserError(f"the token cache {path} cannot be filled ({error.strerror}); choose another `tokens`") from None

    def encode(images: Tensor) -> Tensor:
        return token_ids(images.to(runtime.device), encoder, key.grid)

    return CachedTokens(cache, encode, resolved(setup.config.train.batch_size))


def raw_batches(
    setup: Setup, dataset: ImageDataset, start: int, cached: CachedTokens | None, runtime: Runtime
) -> Iterator[Batch]:
    """Endless batches of this rank on the CPU; without the tokenizer's view once all tokens are stored."""
    machine, batch_size = setup.config.machine, resolved(setup.config.train.batch_size)
    is_stored = cached is not None and cached.cache.is_complete
    while True:
        stream = training_stream(
            dataset.showing(setup.view(shows_tokenizer=False)) if is_stored else dataset,
            batch_size,
            start_batch=start,
            workers=machine.workers,
            rank=runtime.rank,
            world=runtime.world_size,
        )
        for batch in stream:
            yield batch
            start += 1
            if cached is not None and cached.cache.is_complete and not is_stored:
                is_stored = True  # the stream goes on where it is: a batch depends on its number alone
                stream.close()
                break


def described(cache: TokenCache) -> str:
    """The cache in words."""
    total = cache.key.views * cache.num_images
    return (
        f"tokens of {cache.key.views} stored views an image in {cache.path}: {cache.num_stored} of {total} there, "
        f"{bytes_per_view(cache.key):.0f} bytes each"
    )


def saved_time(cached: CachedTokens, setup: Setup, start: int) -> str:
    """A sentence on how many tokens came from the cache and how much time that saved."""
    if not cached.served + cached.encoded:
        return "no images were shown since the run was last started"
    if not cached.encoded:
        cached.measure(next(training_stream(setup.dataset(), cached.batch_size))["token_images"])
    since = f" since step {start}" if start else ""
    each = cached.seconds_per_image
    return (
        f"{cached.served} of {cached.served + cached.encoded} images shown{since} had their tokens from the cache; "
        f"the tokenizer takes {each * 1000:.2g} ms an image, so {each * cached.served:.2g} s were saved"
    )


def _path(setup: Setup, folder: RunFolder) -> Path:
    return setup.config.tokens or folder.path / "tokens"


def _check_alone(setup: Setup, path: Path, runtime: Runtime) -> None:
    if runtime.world_size == 1:
        return
    config = setup.config
    backbone = setup.model.backbone
    options = view_options(config.view, backbone.image_size, backbone.patch[0], config.train.seed)
    raise UserError(
        f"the token cache {path} is not complete and only one process can fill it; first do beitkit tokenize "
        f"{quoted(config.images)} --tokenizer {quoted(config.tokenizer or Path())} --views {setup.views}{options} --out CACHE, "
        "then give `tokens` CACHE"
    )
