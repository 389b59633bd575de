"""Seeds and generators derived from a position, so that draws do not depend on the order of computation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order and types, the same on every machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def stored_view_generator(seed: int, index: int, number: int) -> random.Random:
    """What the stored view `number` of image `index` is drawn from; neither epoch nor number of views enters (decision 005)."""
    return random.Random(derived_seed(seed, "stored view", index, number))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators (of the CPU) begin at `seed` inside; outside, nothing was drawn."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
