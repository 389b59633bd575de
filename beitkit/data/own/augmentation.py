"""An augmentation of the caller's own: a function that is shown every decoded training image before it is cropped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from beitkit.contracts import Augmentation
from beitkit.data.decoding.decode import BrokenImage, Encoded, image_mode
from beitkit.data.decoding.deep import DeepImage
from beitkit.data.decoding.raw import read_raw
from beitkit.data.decoding.reading import AnyImage, scaled, whole_image
from beitkit.data.own.encode import EXPECTED, described, encoded, said
from beitkit.data.seeds import derived_seed, seeded
from beitkit.errors import UserError

PROBES, PROBE_SIDE = 8, 512
"""Images that an augmentation is told by, and their side in pixels: large enough for crops of a fixed size."""


@dataclass(frozen=True)
class OwnAugmentation:
    """A caller's augmentation, for images of one kind."""

    change: Augmentation
    channels: int
    is_deep: bool
    """Whether images are arrays of floats in [0, 1], not of 8 bits."""

    @property
    def description(self) -> str:
        """What files and messages have in its place."""
        return described(self.change)

    def __call__(self, image: AnyImage, seed: int, path: Path) -> AnyImage:
        """The image as the function changes it, with the global generators at `seed`; `path` is its name in messages.

        Raises:
            UserError: the function raised something, or returned no image of the same channels.
        """
        given = np.ascontiguousarray(image.values.transpose(1, 2, 0)) if isinstance(image, DeepImage) else image.copy()
        try:
            with seeded(seed):
                changed = self.change(given)
        except Exception as error:  # whatever the caller's code raises
            raise UserError(f"the augmentation {self.description} raised {said(error)} on {path}") from error
        try:
            return self._read(changed, path)
        except TypeError as error:
            raise UserError(f"the augmentation {self.description} returned {error} for {path}; expected {EXPECTED}") from None
        except BrokenImage as broken:
            raise UserError(f"the augmentation {self.description} returned for {path} an image that {broken.reason}") from None

    def _read(self, changed: object, path: Path) -> AnyImage:
        """What the function returned, as the views take it."""
        if isinstance(changed, Image.Image) and not self.is_deep and changed.mode == image_mode(self.channels):
            return changed
        source = Encoded(path, encoded(changed))
        if self.is_deep:
            values = read_raw(source)
            if values.values.dtype.kind == "f":  # in [0, 1], as the function was given them
                return scaled(values, self.channels, ((0.0, 1.0),) * self.channels, path)
            return scaled(values, self.channels, None, path)
        return whole_image(source, self.channels)

    @cached_property
    def fingerprint(self) -> tuple[str, bool]:
        """Digest of its name and of what it makes of fixed images of noise, and whether it makes the same of them again.

        An attribute `fingerprint` of the function, a text, takes the place of both.

        Raises:
            UserError: it does not change an image into one.
        """
        own = getattr(self.change, "fingerprint", None)
        if isinstance(own, str):
            return own, True
        first = self._probed()
        is_repeatable = first == self._probed()
        digest = hashlib.blake2b(self.description.encode(), digest_size=16)
        digest.update(first if is_repeatable else b"")
        return digest.hexdigest(), is_repeatable

    def _probed(self) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for number in range(PROBES):
            noise = np.random.default_rng(number).random((self.channels, PROBE_SIDE, PROBE_SIDE), dtype=np.float32)
            probe: AnyImage = DeepImage(noise)
            if not self.is_deep:
                probe = Image.fromarray(np.rint(noise * 255).astype(np.uint8).transpose(1, 2, 0).squeeze())
            changed = self(probe, derived_seed("probe", number), Path(f"probe {number}"))
            pixels = changed.values if isinstance(changed, DeepImage) else np.asarray(changed)
            digest.update(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
        return digest.digest()
