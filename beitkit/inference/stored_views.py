"""Tokens of stored views from a batch of paths; picklable, for engines with worker processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beitkit.configs.data import ReadLimit
from beitkit.configs.train import MachineConfig
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.decoding.limit import reading_up_to
from beitkit.data.decoding.reading import readable_image
from beitkit.data.seeds import stored_view_generator
from beitkit.data.stream import token_ids
from beitkit.data.tokens.key import CacheKey
from beitkit.data.tokens.stage import encoded_whole
from beitkit.data.views.image import PretrainView
from beitkit.errors import UserError
from beitkit.interop.load import load_tokenizer
from beitkit.tokenizers.frozen import Encoder, TokenizerNetwork
from beitkit.train.machine.runtime import Runtime, start_runtime


@dataclass(frozen=True, kw_only=True)
class ViewTokens:
    """A worker process loads the tokenizer at its first batch and keeps it."""

    tokenizer: Path
    key: CacheKey
    """Key of the token cache."""
    batch_size: int
    """Images per call of the tokenizer."""
    machine: MachineConfig = MachineConfig()
    """Device and threads; its precision is that of the tokenizer."""
    read: ReadLimit = ReadLimit()

    def __call__(self, batch: Mapping[str, Sequence[Any] | NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
        """A row for each view, or one for an image that cannot be read.

        Args:
            batch: `index`, number of each image in its list; `path`, text or bytes; `views`, the numbers of its wanted views.

        Returns:
            `index`, `view`, `tokens` (rows, n), and `broken`: the index where an image cannot be read, else -1.

        Raises:
            UserError: the tokenizer is not the one of the key.
        """
        places: list[tuple[int, int, int]] = []  # index, view, broken
        shown: list[Tensor] = []
        for index, path, views in zip(batch["index"], batch["path"], batch["views"], strict=True):
            try:
                images = self._views(int(index), Path(os.fsdecode(path)), [int(view) for view in views])
            except BrokenImage:
                places.append((int(index), 0, int(index)))
                continue
            places += [(int(index), int(view), -1) for view in views]
            shown += images
        indices, numbers, broken = np.array(places, dtype=np.int64).reshape(-1, 3).T
        tokens = np.zeros((len(places), self.key.grid[0] * self.key.grid[1]), dtype=np.int64)
        if shown:
            tokens[broken < 0] = self._encoded(torch.stack(shown)).numpy()
        return {"index": indices, "view": numbers, "tokens": tokens, "broken": broken}

    def _views(self, index: int, path: Path, numbers: list[int]) -> list[Tensor]:
        """The tokenizer's views of one image."""
        key = self.key
        view = PretrainView(key.view, key.image_size, key.token_size, only_tokens=True)
        tokenizer = _loaded(self.tokenizer, self.machine)[0].tokenizer
        assert isinstance(tokenizer, TokenizerNetwork)
        with reading_up_to(self.read):
            image = readable_image(path, key.channels, tokenizer.value_range, key.patch)
        return [view(image, stored_view_generator(key.seed, index, number))["token_images"] for number in numbers]

    def _encoded(self, images: Tensor) -> Tensor:
        """Ids of any number of token views."""
        encoder, fingerprint, runtime = _loaded(self.tokenizer, self.machine)
        if fingerprint != self.key.tokenizer:
            raise UserError(f"{self.tokenizer} is not the same tokenizer on all machines; put it on a disk that all of them see")

        def encode(part: Tensor) -> Tensor:
            return token_ids(part.to(runtime.device), encoder, self.key.grid)

        return torch.cat([encoded_whole(part, encode, self.batch_size) for part in images.split(self.batch_size)])


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, machine: MachineConfig) -> tuple[Encoder, str, Runtime]:
    """The tokenizer in the machine's precision, its fingerprint and device."""
    tokenizer, runtime = load_tokenizer(path), start_runtime(machine)
    fingerprint = tokenizer.fingerprint
    return Encoder.laid_out(tokenizer.to(runtime.device), runtime.autocast), fingerprint, runtime
