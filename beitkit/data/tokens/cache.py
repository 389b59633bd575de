"""Token cache: the visual tokens of stored views on disk, computed once, then read.

A cache is a folder of four files. `cache.json` holds the key: everything that tokens depend on. `contents.npy` holds digests of
the images. `tokens.npy` is an array (images, views, n) of uint16 (uint8 up to 256 codes), and `states.npy` (images, views) marks
the rows that are stored. Both arrays are memory-mapped.

A row is written, flushed to disk, and only then marked: whenever the process dies, marked rows are valid, and others are computed
again. Several machines each fill a cache of consecutive images (a `Shard`), because pages of one mapped file would overwrite each
other. `join_caches` joins them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import ViewConfig
from beitkit.data.decoding.decode import one_line
from beitkit.data.sources.image_list import ImageList
from beitkit.data.tokens.contents import BYTES_PER_IMAGE, contents_of, first_changed
from beitkit.data.tokens.key import CacheKey
from beitkit.errors import UserError
from beitkit.files import check_regular, read_json, why
from beitkit.system import write_atomically

VERSION = 2
HEADER, CONTENTS, TOKENS, STATES = "cache.json", "contents.npy", "tokens.npy", "states.npy"
MISSING, STORED, UNREADABLE = 0, 1, 2
ROWS_PER_FLUSH = 4096
"""Rows are flushed and marked together, as a flush per batch would stall training."""


class Shard(NamedTuple):
    """One of several caches of consecutive images, filled by several machines and joined afterward."""

    number: int
    """From 1."""
    shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.shards}"

    def rows(self, num_images: int) -> range:
        """Its images; shards differ in size by one at most."""
        return range((self.number - 1) * num_images // self.shards, self.number * num_images // self.shards)


WHOLE = Shard(1, 1)


class TokenCache:
    """The tokens of stored views; at most one process writes (the caller holds a lock), others read complete rows."""

    def __init__(self, path: Path, key: CacheKey, *, is_writable: bool, first: int = 0) -> None:
        """A cache that is there, of the images from number `first` on; see `open_cache` for one that is checked or made."""
        self.path = path
        self.key = key
        self._first = first
        mode = "r+" if is_writable else "r"
        self._marks = _mapped(path / STATES, np.dtype(np.uint8), (key.views,), mode)
        self._tokens = _mapped(path / TOKENS, _type_of(key.vocabulary), (key.views, key.grid[0] * key.grid[1]), mode)
        if len(self._marks) != len(self._tokens):
            raise UserError(f"{path} is damaged: {STATES} and {TOKENS} are of different lengths; tokenize the images anew")
        self._states = np.array(self._marks)  # includes what is written and not yet marked
        if is_writable:
            self._states[self._states == UNREADABLE] = MISSING  # the disk may have been unavailable; try again
        self._num_missing = int((self._states == MISSING).sum())
        self._unmarked: list[tuple[int, int]] = []

    @property
    def is_complete(self) -> bool:
        """Whether every view is stored, of all images that can be read."""
        return self._num_missing == 0

    @property
    def num_images(self) -> int:
        """Images in the list, or in the shard of it."""
        return len(self._states)

    @property
    def num_stored(self) -> int:
        """Views whose tokens are there."""
        return int((self._states == STORED).sum())

    def is_stored(self, index: int, view: int) -> bool:
        """Whether the tokens of one view are there."""
        return bool(self._states[index - self._first, view] == STORED)

    def stored(self, indices: Int64[Tensor, " b"], views: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether the tokens of these views are there."""
        return torch.from_numpy(self._states[self._rows(indices), views.numpy()] == STORED)

    def tokens(self, indices: Int64[Tensor, " b"], views: Int64[Tensor, " b"]) -> Int64[Tensor, "b n"]:
        """The tokens of stored views."""
        return torch.from_numpy(self._tokens[self._rows(indices), views.numpy()].astype(np.int64))

    def put(self, indices: Int64[Tensor, " b"], views: Int64[Tensor, " b"], tokens: Int64[Tensor, "b n"]) -> None:
        """Store the tokens of views; they can be read at once, and survive a kill from the next flush on."""
        rows = self._rows(indices)
        self._tokens[rows, views.numpy()] = tokens.numpy()
        for row in zip(rows.tolist(), views.tolist(), strict=True):
            self._num_missing -= int(self._states[row] == MISSING)
            self._states[row] = STORED
            self._unmarked.append(row)
        if len(self._unmarked) >= ROWS_PER_FLUSH or self.is_complete:
            self.flush()

    def set_unreadable(self, index: int) -> None:
        """Mark an image as unreadable, so that its views are no longer missing."""
        row = index - self._first
        is_missing = self._states[row] == MISSING
        self._num_missing -= int(is_missing.sum())
        self._states[row, is_missing] = UNREADABLE
        self._unmarked += [(row, int(view)) for view in is_missing.nonzero()[0]]

    def flush(self) -> None:
        """Flush the stored rows to disk, then mark them."""
        if not self._unmarked:
            return
        self._tokens.flush()
        indices, views = np.array(self._unmarked).T
        self._marks[indices, views] = self._states[indices, views]
        self._marks.flush()
        self._unmarked.clear()

    def missing(self) -> Iterator[int]:
        """Images of which a view is missing, in the order of the list."""
        return (self._first + int(row) for row in (self._states == MISSING).any(axis=1).nonzero()[0])

    def missing_views(self, index: int) -> list[int]:
        """Which views of an image are missing."""
        return (self._states[index - self._first] == MISSING).nonzero()[0].tolist()

    def _rows(self, indices: Int64[Tensor, " b"]) -> NDArray[np.int64]:
        rows = indices.numpy() - self._first
        assert not len(rows) or 0 <= rows.min() <= rows.max() < len(self._states)  # numpy would count negative ones from the end
        return rows


def open_cache(path: Path, key: CacheKey, files: ImageList, *, is_writable: bool, shard: Shard = WHOLE) -> TokenCache:
    """The cache in a folder, checked against what it is to be used for; a writable one is made where there is none.

    `files` is the whole list of images; the folder is for those of `shard`.

    Raises:
        UserError: if there is none, or its key or the content of an image differs.
    """
    rows = shard.rows(len(files))
    files = files if shard == WHOLE else files.subset(rows)
    if not (path / HEADER).exists() and is_writable:
        _make(path, key, contents_of(files), shard)
        return TokenCache(path, key, is_writable=True, first=rows.start)
    _check_key(path, read_key(path, shard), key)
    contents = _contents(path)
    if len(contents) != len(files):
        raise UserError(f"{path} is damaged: {CONTENTS} is not of its {len(files)} images; tokenize the images anew")
    changed = first_changed(files, contents)
    if changed is not None:
        raise UserError(
            f"{files.path(changed)} changed since its tokens were stored in {path}; "
            "put the old file back, or store the tokens in another cache"
        )
    return TokenCache(path, key, is_writable=is_writable, first=rows.start)


def join_caches(path: Path, key: CacheKey, files: ImageList, shards: Sequence[TokenCache]) -> None:
    """Make the cache of the whole list from those of its shards, in their order; the same as one process would have made."""
    assert sum(shard.num_images for shard in shards) == len(files)

    def fill(tokens: NDArray[np.generic], states: NDArray[np.uint8]) -> None:
        start = 0
        for shard in shards:
            for first in range(0, shard.num_images, ROWS_PER_FLUSH):  # in pieces, for a shard may be larger than the memory
                last = min(first + ROWS_PER_FLUSH, shard.num_images)
                tokens[start + first : start + last] = shard._tokens[first:last]
                states[start + first : start + last] = shard._marks[first:last]
            start += shard.num_images

    _make(path, key, np.concatenate([_contents(shard.path) for shard in shards]), WHOLE, fill)


def read_key(path: Path, shard: Shard | None = WHOLE) -> CacheKey:
    """What the cache in a folder was made for; with None it may be any shard of one.

    Raises:
        UserError: if there is none, or it has another version, or is another shard.
    """
    header = path / HEADER
    try:
        content = read_json(header)
    except FileNotFoundError:
        raise UserError(f"{path} holds no token cache ({HEADER} is missing); tokenize the images first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no token cache ({header.name}: {why(error)}); tokenize the images first") from None
    if not isinstance(content, dict) or content.pop("version", None) != VERSION:
        raise UserError(f"{header} is not of version {VERSION}; tokenize the images into another folder")
    there = content.pop("shard", str(WHOLE))
    if shard is not None and there != str(shard):
        raise UserError(
            f"{path} is shard {there} of a token cache; join all of them first, by tokenizing without `shard`"
            if shard == WHOLE
            else f"{path} is not shard {shard} but {there} of a token cache; choose another `out`"
        )
    return from_json(CacheKey, content, where=str(header))


def _mapped(path: Path, kind: np.dtype[Any], shape: tuple[int, ...], mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
    """An array of a cache, mapped from its file; `shape` is that of one image.

    Raises:
        UserError: it is not there, or is no such array.
    """
    try:
        check_regular(path)
        array = np.load(path, mmap_mode=mode)
    except Exception as error:  # NumPy's reader of headers raises nearly every type there is
        raise UserError(f"{path} cannot be read: {one_line(error)}; tokenize the images anew") from None
    if not isinstance(array, np.memmap) or array.dtype != kind or array.shape[1:] != shape or not array.ndim:
        raise UserError(f"{path} is damaged: it is no array of {kind} with {shape} for each image; tokenize the images anew")
    return array


def _contents(path: Path) -> NDArray[np.int64]:
    return np.array(_mapped(path / CONTENTS, np.dtype(np.int64), (3,), "r"))


def bytes_per_view(key: CacheKey) -> float:
    """Size of a stored view on the disk: its tokens, its mark, and its part of what is kept of the image."""
    tokens = key.grid[0] * key.grid[1] * _type_of(key.vocabulary).itemsize
    return tokens + 1 + BYTES_PER_IMAGE / key.views


def _make(
    path: Path,
    key: CacheKey,
    contents: NDArray[np.int64],
    shard: Shard,
    fill: Callable[[NDArray[np.generic], NDArray[np.uint8]], None] | None = None,
) -> None:
    """Make a cache, empty or filled by `fill(tokens, states)`; the header comes last, so that what has one is whole."""
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / CONTENTS, lambda file: np.save(file, contents))
    # The files are created with holes: they take their place on the disk as they are filled.
    rows, kind = (len(contents), key.views), _type_of(key.vocabulary)
    tokens = open_memmap(path / TOKENS, mode="w+", dtype=kind, shape=(*rows, key.grid[0] * key.grid[1]))
    states = open_memmap(path / STATES, mode="w+", dtype=np.dtype(np.uint8), shape=rows)
    if fill is not None:
        fill(tokens, states)
    tokens.flush()
    states.flush()
    part = {} if shard == WHOLE else {"shard": str(shard)}
    header = json.dumps({"version": VERSION, **part, **to_json(key)}, indent=2) + "\n"
    write_atomically(path / HEADER, header.encode())


def _check_key(path: Path, there: CacheKey, key: CacheKey) -> None:
    for field in fields(CacheKey):
        before, now = getattr(there, field.name), getattr(key, field.name)
        if before != now:
            what = "images" if field.name == "pictures" else field.name
            raise UserError(
                f"the token cache {path} was made for another `{what}` ({_short(before)} there, {_short(now)} here); "
                "give it as it was, or store the tokens in another cache"
            )


def _type_of(vocabulary: int) -> np.dtype[np.generic]:
    """The smallest type that holds every code."""
    assert vocabulary <= 2**32
    return np.dtype(np.uint8 if vocabulary <= 2**8 else np.uint16 if vocabulary <= 2**16 else np.uint32)


def _short(value: object) -> str:
    if isinstance(value, ViewConfig):
        return ", ".join(f"{name} {setting}" for name, setting in to_json(value).items())
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
