"""The visual tokens of stored views, kept on disk: computed once, read as often as one likes.

A cache is a folder of four files. `cache.json` holds the key: all that tokens depend on. `contents.npy` says what bytes the
pictures had. `tokens.npy` is an array (pictures, views, n) of 16-bit numbers (8-bit ones up to 256 codes), and `states.npy`
(pictures, views) says of each row whether it is there. Both arrays are mapped into memory, so that opening costs nothing.

A row is written, flushed to the disk, and only then marked: whenever the process dies, what is marked is right, and what is not
is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import ViewConfig
from beitkit.configs.model import Pair
from beitkit.data.contents import BYTES_PER_PICTURE, contents_of, first_changed
from beitkit.data.picture_list import PictureList
from beitkit.errors import UserError
from beitkit.system import write_atomically

VERSION = 1
HEADER, CONTENTS, TOKENS, STATES = "cache.json", "contents.npy", "tokens.npy", "states.npy"
MISSING, STORED, UNREADABLE = 0, 1, 2
ROWS_PER_FLUSH = 4096
"""Rows are flushed and marked together: a flush for every batch would make training wait for the disk."""


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


WHAT: dict[str, tuple[str, str]] = {
    "tokenizer": ("tokenizer", "--tokenizer"),
    "vocabulary": ("vocabulary", "--tokenizer"),
    "pictures": ("list of pictures", "IMAGES"),
    "view": ("view", "--view"),
    "image_size": ("picture size", "--image-size"),
    "patch": ("patch size", "--patch"),
    "token_size": ("size of the tokenizer's view", "--tokenizer"),
    "channels": ("number of channels", "--channels"),
    "grid": ("grid", "--patch"),
    "seed": ("seed", "--seed"),
    "views": ("number of views", "--views"),
}
"""What a field of the key is called, and the option that it comes from."""


class TokenCache:
    """The tokens of stored views; at most one process writes to it (the caller holds a lock), others read what is complete."""

    def __init__(self, path: Path, key: CacheKey, *, is_writable: bool) -> None:
        """A cache that is there; see `open_cache` for one that is checked or made."""
        self.path = path
        self.key = key
        mode = "r+" if is_writable else "r"
        self._tokens = np.load(path / TOKENS, mmap_mode=mode)
        self._marks = np.load(path / STATES, mmap_mode=mode)
        self._states = np.array(self._marks)  # includes what is written and not yet marked
        if is_writable:
            self._states[self._states == UNREADABLE] = MISSING  # perhaps the disk was away; it is tried once more
        self._num_missing = int((self._states == MISSING).sum())
        self._unmarked: list[tuple[int, int]] = []

    @property
    def is_complete(self) -> bool:
        """Whether every view is stored, of all pictures that can be read."""
        return self._num_missing == 0

    @property
    def num_pictures(self) -> int:
        """Pictures in the list."""
        return len(self._states)

    @property
    def num_stored(self) -> int:
        """Views whose tokens are there."""
        return int((self._states == STORED).sum())

    def is_stored(self, index: int, view: int) -> bool:
        """Whether the tokens of one view are there."""
        return bool(self._states[index, view] == STORED)

    def stored(self, indices: Int64[Tensor, " b"], views: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether the tokens of these views are there."""
        return torch.from_numpy(self._states[indices.numpy(), views.numpy()] == STORED)

    def tokens(self, indices: Int64[Tensor, " b"], views: Int64[Tensor, " b"]) -> Int64[Tensor, "b n"]:
        """The tokens of stored views."""
        return torch.from_numpy(self._tokens[indices.numpy(), views.numpy()].astype(np.int64))

    def put(self, indices: Int64[Tensor, " b"], views: Int64[Tensor, " b"], tokens: Int64[Tensor, "b n"]) -> None:
        """Store the tokens of views; they can be read at once, and survive a kill from the next flush on."""
        self._tokens[indices.numpy(), views.numpy()] = tokens.numpy()
        for row in zip(indices.tolist(), views.tolist(), strict=True):
            self._num_missing -= int(self._states[row] == MISSING)
            self._states[row] = STORED
            self._unmarked.append(row)
        if len(self._unmarked) >= ROWS_PER_FLUSH or self.is_complete:
            self.flush()

    def set_unreadable(self, index: int) -> None:
        """Wait no longer for the views of a picture that cannot be read."""
        is_missing = self._states[index] == MISSING
        self._num_missing -= int(is_missing.sum())
        self._states[index, is_missing] = UNREADABLE
        self._unmarked += [(index, int(view)) for view in is_missing.nonzero()[0]]

    def flush(self) -> None:
        """Bring what was put to the disk, then mark it."""
        if not self._unmarked:
            return
        self._tokens.flush()
        indices, views = np.array(self._unmarked).T
        self._marks[indices, views] = self._states[indices, views]
        self._marks.flush()
        self._unmarked.clear()

    def missing(self) -> Iterator[int]:
        """Pictures of which a view is missing, in the order of the list."""
        return (int(index) for index in (self._states == MISSING).any(axis=1).nonzero()[0])


def open_cache(path: Path, key: CacheKey, files: PictureList, *, is_writable: bool) -> TokenCache:
    """The cache in a folder, checked against what it is to be used for; a writable one is made where there is none.

    Raises:
        UserError: if there is none, or its key or the content of a picture differs.
    """
    if not (path / HEADER).exists():
        if not is_writable:
            raise UserError(f"{path} holds no token cache ({HEADER} is missing); make one with beitkit tokenize")
        _make(path, key, files)
        return TokenCache(path, key, is_writable=True)
    there = read_key(path)
    for field in fields(CacheKey):
        before, now = getattr(there, field.name), getattr(key, field.name)
        if before != now:
            what, option = WHAT[field.name]
            raise UserError(
                f"the token cache {path} was made for another {what} ({_short(before)} there, {_short(now)} here); "
                f"give {option} as it was, or make another cache with beitkit tokenize"
            )
    changed = first_changed(files, np.load(path / CONTENTS))
    if changed is not None:
        raise UserError(
            f"{files.path(changed)} changed since its tokens were stored in {path}; "
            "put the old file back, or make another cache with beitkit tokenize"
        )
    return TokenCache(path, key, is_writable=is_writable)


def read_key(path: Path) -> CacheKey:
    """What the cache in a folder was made for.

    Raises:
        UserError: if there is none, or it has another version.
    """
    header = path / HEADER
    try:
        content = json.loads(header.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no token cache ({header.name}: {error}); make one with beitkit tokenize") from None
    if not isinstance(content, dict) or content.pop("version", None) != VERSION:
        raise UserError(f"{header} is not of version {VERSION}; make another cache with beitkit tokenize")
    return from_json(CacheKey, content, where=str(header))


def bytes_per_view(key: CacheKey) -> float:
    """Size of a stored view on the disk: its tokens, its mark, and its part of what is kept of the picture."""
    tokens = key.grid[0] * key.grid[1] * _type_of(key.vocabulary).itemsize
    return tokens + 1 + BYTES_PER_PICTURE / key.views


def _make(path: Path, key: CacheKey, files: PictureList) -> None:
    """Make an empty cache; the header comes last, so that what has one is whole."""
    path.mkdir(parents=True, exist_ok=True)
    contents = contents_of(files)
    write_atomically(path / CONTENTS, lambda file: np.save(file, contents))
    rows = len(files), key.views
    # The files are created with holes: they take their place on the disk as they are filled.
    tokens = _type_of(key.vocabulary)
    for name, dtype, shape in ((TOKENS, tokens, (*rows, key.grid[0] * key.grid[1])), (STATES, np.dtype(np.uint8), rows)):
        np.lib.format.open_memmap(path / name, mode="w+", dtype=dtype, shape=shape).flush()
    header = json.dumps({"version": VERSION, **to_json(key)}, indent=2) + "\n"
    write_atomically(path / HEADER, header.encode())


def _type_of(vocabulary: int) -> np.dtype[np.generic]:
    """The smallest type that holds every code."""
    assert vocabulary <= 2**32
    return np.dtype(np.uint8 if vocabulary <= 2**8 else np.uint16 if vocabulary <= 2**16 else np.uint32)


def _short(value: object) -> str:
    if isinstance(value, ViewConfig):
        return ", ".join(f"{name} {setting}" for name, setting in to_json(value).items())
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
