"""Image transforms: crops, flips, color jitter and resizing, each drawn from a given generator.

A view is called as `view(image, rng)` with an upright Pillow image in mode "RGB" or "L" and a `random.Random`, and returns
uint8 tensors (c, h, w); of a `DeepImage` float32 tensors in [0, 1], by the same crops, flips and filters without rounding. The
image may be a `StoredImage`, which is decoded once the crop is known, at the resolution that the
crop needs (decision 007). A view never modifies its image, and equal generators give equal views. `PretrainView` makes
one crop at two sizes, for the backbone and for the tokenizer (BEiT's two views); `TrainView` and `EvaluationView` are for
classification.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.data import SMALL, Preprocessing, ViewConfig
from beitkit.configs.model import Pair
from beitkit.data.decoding.decode import SIDEWAYS, Pixels, StoredImage, possible_reduction
from beitkit.data.decoding.deep import DeepImage
from beitkit.data.decoding.reading import AnyImage, as_tensor
from beitkit.data.views.augment import RandAugment, draw_erasing
from beitkit.data.views.batched import cut_alike, jittered
from beitkit.data.views.framing import covering_size, holding_size, outer_size
from beitkit.data.views.jitter import color_jittered, drawn_jitters, jittered_part
from beitkit.data.views.orientation import FLIPPED_AXES, Orientation, drawn_orientation, drawn_turns, on_its_side, oriented

View = Callable[..., dict[str, Tensor]]
"""Takes an image (and its label map, where a dataset has them) and a `random.Random`."""

PADDING = 4  # pixels of black around small images before a training crop, as usual on CIFAR
ATTEMPTS = 10  # random crops tried before the central one
MAX_ASPECT = 16  # longer images lose their ends before they are resized for evaluation

# Older releases resize with the other filters only.
HAS_LANCZOS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)
FINENESS = 2.9  # times the size that evaluation resizes to, which a JPEG decoded at less than its size still has (decision 017)


@runtime_checkable
class TogetherView(Protocol):
    """A view that can draw a batch of small images together, bit for bit as it would draw each alone."""

    def fits(self, sizes: Sequence[Pair]) -> bool:
        """Whether it can for images of these (height, width)."""
        ...

    def together(
        self, images: UInt8[Tensor, "b c h w"], sizes: Sequence[Pair], generators: Sequence[random.Random]
    ) -> dict[str, Tensor]:
        """The views of images that lie in the top left corners of equal frames, black around them, stacked by key."""
        ...


class Box(NamedTuple):
    """A box in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class PretrainView:
    """BEiT's two views: one jitter, crop and flip (and turn), at the backbone's size and at the tokenizer's.

    `images` is resized with a bicubic filter, `token_images` with Lanczos (left out when `token_size` is None); both from
    the same crop, or with `view.shift` from the whole image, moved. The steps follow the original's: jitter of the whole image,
    of which only the crop is computed, then crop and flip.
    """

    view: ViewConfig
    image_size: Pair
    token_size: Pair | None
    only_tokens: bool = False
    """Whether `images` is left out; `image_size` still affects the resolution at which a JPEG is decoded."""

    def __call__(self, image: AnyImage | StoredImage, rng: random.Random) -> dict[str, Tensor]:
        """`images` (c, h, w) and `token_images` (c, h', w'), both uint8."""
        jitters = drawn_jitters(self.view.jitter, image.mode, rng)
        box, orientation = _drawn_part((image.height, image.width), self.view, self.image_size, rng)
        sizes = [self.image_size] if self.token_size is None else [self.image_size, self.token_size]
        largest = max(size[0] for size in sizes), max(size[1] for size in sizes)
        whole, box = _decoded_for(image, box, largest, orientation, as_image=bool(jitters) or self.view.shift is not None)
        crop = _cut(whole, box)
        if jitters:
            assert isinstance(whole, AnyImage)
            assert isinstance(crop, AnyImage)
            crop = jittered_part(crop, jitters, whole)
        pixels = _pixels(crop, orientation)
        views = {} if self.only_tokens else {"images": _shrunk(pixels, self.image_size, "bicubic")}
        if self.token_size is not None:
            views["token_images"] = _shrunk(pixels, self.token_size, "lanczos")
        return views

    def fits(self, sizes: Sequence[Pair]) -> bool:
        """Always."""
        return True

    def together(
        self, images: UInt8[Tensor, "b c h w"], sizes: Sequence[Pair], generators: Sequence[random.Random]
    ) -> dict[str, Tensor]:
        """See `TogetherView`."""
        mode, jitters, crops = "L" if images.shape[1] == 1 else "RGB", [], []
        for size, rng in zip(sizes, generators, strict=True):
            jitters.append(drawn_jitters(self.view.jitter, mode, rng))
            crops.append(_drawn_part(size, self.view, self.image_size, rng))
        margin = 0 if self.view.shift is None else max(_beyond(box, (images.shape[2], images.shape[3])) for box, _ in crops)
        images = jittered(F.pad(images, (margin,) * 4) if margin else images, sizes, jitters)
        crops = [(box._replace(top=box.top + margin, left=box.left + margin), way) for box, way in crops]
        shown = [] if self.only_tokens else [("images", self.image_size, "bicubic")]
        if self.token_size is not None:
            shown.append(("token_images", self.token_size, "lanczos"))
        uncut = [name for name, size, _ in shown if _are_alike(crops, size)]
        views: dict[str, Tensor] = {}
        if uncut:
            boxes, ways = zip(*crops, strict=True)
            cut = cut_alike(images, [(box.top, box.left) for box in boxes], (boxes[0].height, boxes[0].width), ways)
            views = dict.fromkeys(uncut, cut)
        if len(uncut) < len(shown):
            parts = [_part(image, *crop) for image, crop in zip(images, crops, strict=True)]
            views |= {
                name: torch.stack([_shrunk(part, size, kind) for part in parts])
                for name, size, kind in shown
                if name not in uncut
            }
        return views


@dataclass(frozen=True)
class TrainView:
    """Training of a classifier: a random crop resized with a bicubic filter, a flip, and RandAugment or else jitter.

    Networks for images of at most 32 pixels see the whole image, shifted by up to 4 pixels, instead of a crop (the
    original's rule); `crop_scale` and `crop_ratio` are not used then.
    """

    view: ViewConfig
    image_size: Pair
    augment: RandAugment | None = None
    """Replaces the jitter (method 5.1)."""
    erasing: float = 0.0
    """Probability of random erasing, which happens after normalization."""

    def __call__(self, image: AnyImage | StoredImage, rng: random.Random) -> dict[str, Tensor]:
        """`images` (c, h, w), uint8; with erasing also `erased` (5), see `augment.draw_erasing`."""
        if max(self.image_size) <= SMALL:
            turns = drawn_turns(self.view, rng)
            small = _resized(_decoded(image), on_its_side(self.image_size, turns), Image.Resampling.BICUBIC)
            shown = _transposed(_shifted(small, _most_shifted(self.view), rng), drawn_orientation(self.view, turns, rng))
        else:
            shown = to_image(_cropped(image, self.view, self.image_size, "bicubic", rng))
        shown = color_jittered(shown, self.view.jitter, rng) if self.augment is None else self.augment(shown, rng)
        sample = {"images": as_tensor(shown)}
        if self.erasing > 0:
            sample["erased"] = draw_erasing(self.image_size, self.erasing, rng)
        return sample

    def fits(self, sizes: Sequence[Pair]) -> bool:
        """Of squares that have the network's size, without RandAugment."""
        height, width = self.image_size
        return self.augment is None and height == width <= SMALL and all(size == self.image_size for size in sizes)

    def together(
        self, images: UInt8[Tensor, "b c h w"], sizes: Sequence[Pair], generators: Sequence[random.Random]
    ) -> dict[str, Tensor]:
        """See `TogetherView`."""
        mode, most = "L" if images.shape[1] == 1 else "RGB", _most_shifted(self.view)
        jitters, corners, orientations, erasing = [], [], [], []
        for rng in generators:
            turns = drawn_turns(self.view, rng)
            across, down = _drawn_shift(most, rng)
            corners.append((most + down, most + across))
            orientations.append(drawn_orientation(self.view, turns, rng))
            jitters.append(drawn_jitters(self.view.jitter, mode, rng))
            if self.erasing > 0:
                erasing.append(draw_erasing(self.image_size, self.erasing, rng))
        shown = cut_alike(F.pad(images, (most,) * 4), corners, self.image_size, orientations)
        sample = {"images": jittered(shown, sizes, jitters)}
        return sample | {"erased": torch.stack(erasing)} if erasing else sample


@dataclass(frozen=True)
class EvaluationView:
    """Evaluation: the center of the image, resized to image size / crop share by its short side, by its long side (letterbox:
    what is left over has the mean color), or squeezed to that size.

    Networks for images of at most `SMALL` pixels see the whole image, squeezed where it is not letterboxed. The generator is not
    used.
    """

    preprocessing: Preprocessing
    image_size: Pair

    def __call__(self, image: AnyImage | StoredImage, rng: random.Random) -> dict[str, Tensor]:
        """`images` (c, h, w), uint8."""
        shown, box = self.preprocessing, Box(0, 0, image.height, image.width)
        if shown.fit == "letterbox":
            return {"images": _letterboxed(image, self.image_size, shown)}
        if shown.shows_whole(self.image_size):
            size = self.image_size
        elif shown.fit == "squeeze":
            size = outer_size(self.image_size, shown.crop_share)
        else:
            box = _middle(box)
            size = covering_size((box.height, box.width), self.image_size, shown.crop_share)
        top, left = (round((whole - part) / 2) for whole, part in zip(size, self.image_size, strict=True))
        return {"images": _seen(image, box, size, Box(top, left, *self.image_size), shown)}


@dataclass(frozen=True)
class ProbeView:
    """Training of the official linear probe: a random crop of the usual area and aspect, resized bilinearly, and a flip."""

    image_size: Pair

    def __call__(self, image: AnyImage | StoredImage, rng: random.Random) -> dict[str, Tensor]:
        """`images` (c, h, w), uint8."""
        return {"images": _cropped(image, ViewConfig(), self.image_size, "bilinear", rng)}


def crop_box(image: Pair, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random) -> Box:
    """A random crop of an image (height, width): area share from `scale`, width / height log-uniform from `ratio`.

    If ten draws do not fit, the central crop with the nearest aspect ratio.
    """
    height, width = image
    for _ in range(ATTEMPTS):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = rng.randint(0, height - crop_height), rng.randint(0, width - crop_width)
            return Box(top, left, crop_height, crop_width)
    crop_height = min(height, max(1, round(width / ratio[0])))
    crop_width = min(width, max(1, round(height * ratio[1])))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def _drawn_part(size: Pair, view: ViewConfig, shown: Pair, rng: random.Random) -> tuple[Box, Orientation]:
    """A random crop of an image (height, width), or all of it moved, and how it is flipped and turned.

    A crop's aspect is drawn as it is shown, after the turn. The box of an image that is moved lies beyond it in part; `shown` is
    the size in whose pixels that is drawn.
    """
    turns = drawn_turns(view, rng)
    if view.shift is not None:
        across, down = _drawn_shift(view.shift, rng)
        height, width = on_its_side(shown, turns)
        return Box(round(down * size[0] / height), round(across * size[1] / width), *size), drawn_orientation(view, turns, rng)
    box = crop_box(on_its_side(size, turns), view.crop_area, view.crop_ratio, rng)
    if turns % 2:
        box = Box(box.left, box.top, box.width, box.height)  # where it lies is drawn evenly, either way
    return box, drawn_orientation(view, turns, rng)


def _cropped(
    image: AnyImage | StoredImage, view: ViewConfig, size: Pair, mode: str, rng: random.Random
) -> Shaped[Tensor, "c h w"]:
    """A random crop at (height, width) `size`, flipped and turned or not."""
    box, orientation = _drawn_part((image.height, image.width), view, size, rng)
    whole, box = _decoded_for(image, box, size, orientation, as_image=view.shift is not None)
    return _shrunk(_pixels(_cut(whole, box), orientation), size, mode)


def _decoded(image: AnyImage | StoredImage) -> AnyImage:
    return image.decoded() if isinstance(image, StoredImage) else image


def _decoded_for(
    image: AnyImage | StoredImage, box: Box, size: Pair, orientation: Orientation, *, as_image: bool = False
) -> tuple[AnyImage | Pixels, Box]:
    """The whole image decoded at the resolution that a crop shown at (height, width) `size` needs, and the crop's box in it.

    Decoded at a half, a quarter or an eighth, it still has at least twice the shown size, so that the resize filter determines
    the result, and rounding the box to whole pixels shifts it by at most a quarter of a shown pixel.
    """
    if not isinstance(image, StoredImage):
        return image, box
    height, width = (size[1], size[0]) if orientation in SIDEWAYS else size
    reduction = min(box.height // height, box.width // width) // 2
    whole = image.decoded(reduction) if as_image else image.pixels(reduction)
    decoded = (whole.height, whole.width) if isinstance(whole, Image.Image) else whole.shape[:2]
    if decoded == (image.height, image.width):
        return whole, box
    down, across = decoded[0] / image.height, decoded[1] / image.width
    top, left = round(box.top * down), round(box.left * across)
    return whole, Box(top, left, round((box.top + box.height) * down) - top, round((box.left + box.width) * across) - left)


def _cut(whole: AnyImage | Pixels, box: Box) -> AnyImage | Pixels:
    """A part of the image."""
    top, left, bottom, right = box.top, box.left, box.top + box.height, box.left + box.width
    return whole.crop((left, top, right, bottom)) if isinstance(whole, AnyImage) else whole[top:bottom, left:right]


def _pixels(crop: AnyImage | Pixels, orientation: Orientation) -> DeepImage | UInt8[Tensor, "h w *channels"]:
    """A crop as it lies in memory, flipped and turned or not."""
    if isinstance(crop, DeepImage):
        return crop if orientation is None else crop.transpose(orientation)
    return oriented(torch.from_numpy(np.array(crop) if isinstance(crop, Image.Image) else crop), orientation)


def _part(image: UInt8[Tensor, "c h w"], box: Box, orientation: Orientation) -> UInt8[Tensor, "rows columns *channels"]:
    """The same of an image in memory."""
    crop = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return oriented(crop[0] if len(crop) == 1 else crop.permute(1, 2, 0), orientation)


def _shrunk(crop: DeepImage | UInt8[Tensor, "rows columns *channels"], size: Pair, mode: str) -> Shaped[Tensor, "c h w"]:
    """A crop at (height, width) `size` by PyTorch's antialiased filter; how it differs from Pillow's: decision 007."""
    if isinstance(crop, DeepImage):
        return as_tensor(_resized(crop, size, Image.Resampling[mode.upper()]))
    if mode == "lanczos" and not HAS_LANCZOS:
        return as_tensor(_resized(Image.fromarray(crop.numpy()), size, Image.Resampling.LANCZOS))
    pixels = crop.unsqueeze(0) if crop.ndim == 2 else crop.permute(2, 0, 1)
    if pixels.shape[1:] == size:  # which every filter leaves as it is
        return pixels.contiguous()
    return F.interpolate(pixels.unsqueeze(0), size, mode=mode, antialias=True)[0].contiguous()


def _letterboxed(image: AnyImage | StoredImage, size: Pair, shown: Preprocessing) -> Shaped[Tensor, "c h w"]:
    """The whole image between bars of the mean color, which normalization makes 0; of a crop share below 1 the center."""
    inner = holding_size((image.height, image.width), size, shown.crop_share)
    (rows, at_rows), (columns, at_columns) = map(_centered, inner, size)
    part = Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
    resized = _seen(image, Box(0, 0, image.height, image.width), inner, part, shown)
    mean = torch.tensor(shown.mean)
    mean = mean if len(resized) == len(mean) else mean.mean(0, keepdim=True).expand(len(resized))
    bars = mean if resized.is_floating_point() else (255 * mean).round().to(resized.dtype)
    canvas = bars[:, None, None].repeat(1, *size)
    canvas[:, at_rows, at_columns] = resized
    return canvas


def _centered(part: int, whole: int) -> tuple[slice, slice]:
    """What of a length is shown in the middle of another, and where there."""
    if part <= whole:
        start = (whole - part) // 2
        return slice(0, part), slice(start, start + part)
    start = round((part - whole) / 2)
    return slice(start, start + whole), slice(0, whole)


def to_image(pixels: Shaped[Tensor, "c h w"]) -> AnyImage:
    """The image of pixels, the inverse of `as_tensor`."""
    if pixels.is_floating_point():
        return DeepImage(pixels.numpy())
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _transposed(image: AnyImage, orientation: Orientation) -> AnyImage:
    return image if orientation is None else image.transpose(orientation)


def _shifted(image: AnyImage, most: int, rng: random.Random) -> AnyImage:
    """The image shifted by up to so many pixels along each axis, padded with black."""
    across, down = _drawn_shift(most, rng)
    return image.crop((across, down, across + image.width, down + image.height))


def _drawn_shift(most: int, rng: random.Random) -> Pair:
    """Pixels (across, down)."""
    return rng.randint(-most, most), rng.randint(-most, most)


def _most_shifted(view: ViewConfig) -> int:
    return PADDING if view.shift is None else view.shift


def _beyond(box: Box, size: Pair) -> int:
    """How many pixels a box reaches beyond an image (height, width), at most."""
    return max(0, -box.top, -box.left, box.top + box.height - size[0], box.left + box.width - size[1])


def _are_alike(parts: Sequence[tuple[Box, Orientation]], size: Pair) -> bool:
    """Whether all have this (height, width) and need no resizing."""
    is_square = size[0] == size[1]
    return all((box.height, box.width) == size and (is_square or way not in SIDEWAYS) for box, way in parts)


def _middle(box: Box) -> Box:
    """The middle of a very long image: resizing all of a 1x20000 image would take gigabytes and keep hardly any of it."""
    height, width = min(box.height, MAX_ASPECT * box.width), min(box.width, MAX_ASPECT * box.height)
    return Box((box.height - height) // 2, (box.width - width) // 2, height, width)


def _seen(image: AnyImage | StoredImage, box: Box, size: Pair, part: Box, shown: Preprocessing) -> Shaped[Tensor, "c h w"]:
    """A part of what a box of the image is at (height, width) `size`.

    A JPEG is decoded at a half, a quarter or an eighth where the box still has `FINENESS` times that size (decision 017).
    """
    filter = Image.Resampling[shown.filter.upper()]
    if isinstance(image, StoredImage):
        reduction = possible_reduction(min(box.height / size[0], box.width / size[1]) / FINENESS)
        if reduction > 1:
            edges = _edges(image, box, size, part, reduction)
            return as_tensor(image.decoded(reduction).resize((part.width, part.height), filter, edges))
    whole = _decoded(image)
    if (box.height, box.width) != (whole.height, whole.width):
        whole = whole.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    resized = _resized(whole, size, filter)
    return as_tensor(resized.crop((part.left, part.top, part.left + part.width, part.top + part.height)))


def _edges(image: StoredImage, box: Box, size: Pair, part: Box, reduction: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what a part shows, in pixels of the reduced image, of which the last may be half empty.

    Of images that were turned the first ones may be.
    """
    backward = FLIPPED_AXES[image.turn]
    before = [-side % reduction if axis in backward else 0 for axis, side in enumerate((image.height, image.width))]
    top, bottom = (before[0] + box.top + box.height * row / size[0] for row in (part.top, part.top + part.height))
    left, right = (before[1] + box.left + box.width * column / size[1] for column in (part.left, part.left + part.width))
    return left / reduction, top / reduction, right / reduction, bottom / reduction


def _resized(image: AnyImage, size: Pair, filter: Image.Resampling) -> AnyImage:
    """The whole image at (height, width)."""
    return image.resize((size[1], size[0]), filter)
