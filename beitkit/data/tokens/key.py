"""What the tokens of a cache depend on."""

from __future__ import annotations

from dataclasses import dataclass

from beitkit.configs.data import ViewConfig
from beitkit.configs.model import Pair
from beitkit.contracts import Precision


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """All that the tokens of a stored view depend on, besides the content of its picture."""

    tokenizer: str
    """Fingerprint of the tokenizer."""
    vocabulary: int
    """Its number of codes."""
    pictures: str
    """Digest of the list: names and order."""
    view: ViewConfig
    image_size: Pair
    """Size of the backbone's view."""
    patch: Pair
    """Smaller pictures count as unreadable."""
    token_size: Pair
    """Size of the tokenizer's view."""
    channels: int
    grid: Pair
    """Patches, and so tokens, of a view."""
    seed: int
    views: int
    """Stored views of a picture."""
    precision: Precision = "float32"
    """Of the tokenizer's arithmetic."""
