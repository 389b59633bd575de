"""A tokenizer of the caller's own: any function from images to an id for every patch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from beitkit.configs.data import ValueRange
from beitkit.configs.model import Pair, by
from beitkit.contracts import PatchTokenizer
from beitkit.errors import UserError

PROBES = 4
"""Images that a tokenizer is told by."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True, eq=False)
class OwnTokenizer:
    """A caller's tokenizer, tried; make one with `of`."""

    function: PatchTokenizer
    description: str
    vocabulary: int
    stride: int
    channels: int
    value_range: ValueRange | None
    """Of the images that it is shown in [0, 1]."""
    grid: Pair
    """Rows and columns of ids."""
    fingerprint: str
    is_repeatable: bool
    """Whether it gave fixed images the same ids twice."""
    config: None = None
    """What planning counts the operations of a tokenizer by; of this one nothing is known."""

    @classmethod
    def of(
        cls,
        function: PatchTokenizer,
        description: str,
        *,
        grid: Pair,
        patch: int,
        channels: int,
        value_range: ValueRange | None,
        device: torch.device,
    ) -> OwnTokenizer:
        """Try a function on fixed images of noise, and make a tokenizer of it.

        Its `vocabulary` is the number of ids. Its `stride`, if it has one, is the side in pixels of what an id stands for, and
        its images are so large; else they have the network's size. A module is moved to the device and made to evaluate.

        Raises:
            UserError: there is no `vocabulary`, or what comes out is not an id for every patch.
        """
        vocabulary, stride = getattr(function, "vocabulary", None), getattr(function, "stride", patch)
        for name, value in (("vocabulary", vocabulary), ("stride", stride)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                says = f"has `{name}` {value!r}" if value is not None else f"has no `{name}`"
                what = "the number of its ids" if name == "vocabulary" else "the pixels that an id stands for, along a side"
                raise UserError(f"the tokenizer {description} {says}; give it one, {what} (function.{name} = ...)")
        if isinstance(function, nn.Module):
            function.to(device).eval()
        found = cls(function, description, vocabulary, stride, channels, value_range, grid, "", is_repeatable=True)  # type: ignore[arg-type] - both whole numbers
        generator = torch.Generator().manual_seed(0)
        probes = torch.rand(PROBES, channels, grid[0] * stride, grid[1] * stride, generator=generator).to(device)  # type: ignore[operator]
        with torch.no_grad():
            ids = found.encode(probes)
            is_repeatable = bool(torch.equal(ids, found.encode(probes)))
        own = getattr(function, "fingerprint", None)
        seen = ids.cpu().numpy().astype("<i8").tobytes() if is_repeatable else b""
        digest = hashlib.blake2b(f"{description}\0{vocabulary}\0{stride}\0".encode() + seen, digest_size=16).hexdigest()
        fingerprint = own if isinstance(own, str) else digest
        return cls(function, description, vocabulary, stride, channels, value_range, grid, fingerprint, is_repeatable)  # type: ignore[arg-type]

    def encode(self, images: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b gh gw"]:
        """The function's ids of images in [0, 1].

        Raises:
            UserError: not an id for every patch, or, where that can be seen without waiting for a device, not within the
                vocabulary.
        """
        ids = self.function(images.float().contiguous())
        rows, columns = self.grid
        expected = f"expected int64 ids ({len(images)}, {rows}, {columns}) or ({len(images)}, {rows * columns}), one a patch"
        if not isinstance(ids, Tensor):
            raise UserError(f"the tokenizer {self.description} returned a {type(ids).__name__}; {expected}")
        if ids.dtype not in INTEGERS or ids.shape not in ((len(images), rows, columns), (len(images), rows * columns)):
            kind = str(ids.dtype).removeprefix("torch.")
            shape = f"({', '.join(map(str, ids.shape))})"
            raise UserError(
                f"the tokenizer {self.description} returned {kind} {shape} for {by((images.shape[2], images.shape[3]))} pixels; "
                f"{expected}"
            )
        if not self.fingerprint or ids.device.type == "cpu":  # the probes, always
            least, most = int(ids.min()), int(ids.max())
            if least < 0 or most >= self.vocabulary:
                raise UserError(
                    f"the tokenizer {self.description} returned ids from {least} to {most}; its `vocabulary` is "
                    f"{self.vocabulary}, so they must lie in 0 to {self.vocabulary - 1}"
                )
        return ids.long().to(images.device).reshape(len(images), rows, columns)

    def decode(self, ids: Int64[Tensor, "b gh gw"]) -> Float[Tensor, "b c h w"]:
        """There are no images for ids.

        Raises:
            UserError: always.
        """
        raise UserError(f"the tokenizer {self.description} cannot decode its {self.vocabulary} ids to pixels")
