"""Key of a token cache: everything that its tokens depend on."""

from __future__ import annotations

from dataclasses import dataclass

from beitkit.configs.data import ViewConfig
from beitkit.configs.model import Pair
from beitkit.contracts import Precision, Tokenizer
from beitkit.data.sources.image_list import ImageList


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """All that the tokens of a stored view depend on, besides the content of its image."""

    tokenizer: str
    """Fingerprint of the tokenizer."""
    vocabulary: int
    """Its number of codes."""
    pictures: str
    """Digest of the list of images: names and order. Named as it is in cache.json."""
    view: ViewConfig
    image_size: Pair
    """Size of the backbone's view."""
    patch: Pair
    """Smaller images count as unreadable."""
    token_size: Pair
    """Size of the tokenizer's view."""
    channels: int
    grid: Pair
    """Patches, and so tokens, of a view."""
    seed: int
    views: int
    """Stored views of an image."""
    precision: Precision = "float32"
    """Of the tokenizer's arithmetic."""

    @classmethod
    def of(
        cls, files: ImageList, tokenizer: Tokenizer, view: ViewConfig, image_size: Pair, patch: Pair, seed: int, views: int
    ) -> CacheKey:
        """The key of the tokens that `tokenizer` gives `views` stored views of each image of a list."""
        grid = image_size[0] // patch[0], image_size[1] // patch[1]
        return cls(
            tokenizer=tokenizer.fingerprint,
            vocabulary=tokenizer.vocabulary,
            pictures=files.digest,
            view=view,
            image_size=image_size,
            patch=patch,
            token_size=token_size_of(tokenizer, grid),
            channels=tokenizer.channels,
            grid=grid,
            seed=seed,
            views=views,
        )


def token_size_of(tokenizer: Tokenizer, grid: Pair) -> Pair:
    """Size of the view that has one token per patch."""
    return grid[0] * tokenizer.stride, grid[1] * tokenizer.stride
