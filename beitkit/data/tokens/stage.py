"""Stream stage that reads tokens from a cache and computes missing ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from beitkit.contracts import Batch
from beitkit.data.tokens.cache import TokenCache
from beitkit.errors import UserError


class CachedTokens:
    """Tokens from a cache, else from the tokenizer; counts both."""

    def __init__(self, cache: TokenCache, encode: Callable[[Tensor], Tensor], batch_size: int) -> None:
        """`encode` makes ids (b, n) of views, which it is given by `batch_size` at once, whatever is missing."""
        self.cache = cache
        self.encode = encode
        self.batch_size = batch_size
        self.served = 0
        """Images whose tokens came from the cache."""
        self.encoded = 0
        """Images whose tokens were computed."""
        self.seconds = 0.0
        """Time that took."""
        self._measured = 0

    def tokenized(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """Batches with `tokens` (b, n) in place of `token_images`, which may be left out where everything is stored.

        Put it before `to_device`: only what has to be encoded is moved.

        Raises:
            UserError: if the tokens of an image are missing that could not be read when the others were stored.
        """
        for batch in stream:
            for index in batch["broken"].tolist():
                if index >= 0:
                    self.cache.set_unreadable(index)
            indices, views = batch["index"], batch["view"]
            # What is shown, black, in place of an image of an evaluation that cannot be read has no tokens to keep.
            missing = (~self.cache.stored(indices, views) & (batch["broken"] != indices)).nonzero().flatten()
            if len(missing):
                if "token_images" not in batch:
                    raise UserError(
                        f"the token cache {self.cache.path} lacks image {int(indices[missing[0]])} of the list, which could "
                        "not be read when the others were stored; complete the cache first"
                    )
                ids = self._encoded(batch["token_images"][missing])
                self.cache.put(indices[missing], views[missing], ids)
            self.encoded += len(missing)
            self.served += len(indices) - len(missing)
            rest = {key: value for key, value in batch.items() if key not in ("token_images", "view")}
            yield rest | {"tokens": self.cache.tokens(indices, views)}

    @property
    def seconds_per_image(self) -> float:
        """Time that the tokenizer takes for an image."""
        return self.seconds / max(1, self.encoded or self._measured)

    def measure(self, images: Shaped[Tensor, "b c h w"]) -> None:
        """Where everything was stored: find out on a batch how long the tokenizer takes."""
        self._encoded(images)  # the first one also loads kernels
        self.seconds = 0.0
        self._encoded(images)
        self._measured = len(images)

    def _encoded(self, images: Shaped[Tensor, "m c h w"]) -> Int64[Tensor, "m n"]:
        """Ids on the CPU."""
        start = time.perf_counter()
        ids = encoded_whole(images, self.encode, self.batch_size)
        self.seconds += time.perf_counter() - start
        return ids


def encoded_whole(images: Shaped[Tensor, "m c h w"], encode: Callable[[Tensor], Tensor], batch_size: int) -> Int64[Tensor, "m n"]:
    """Ids on the CPU of at least one image.

    The tokenizer always gets `batch_size` images, padded by repeating: kernels for other shapes may round differently, and tokens
    must not depend on which ones were missing.
    """
    filled = images[torch.arange(max(batch_size, len(images))) % len(images)]
    return encode(filled)[: len(images)].cpu()
