"""Which part of an image evaluation shows, and at what size: sizes are (height, width)."""

from __future__ import annotations

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import Pair


def outer_size(image_size: Pair, crop_share: float) -> Pair:
    """The (height, width) of which a center of `image_size` has this share, along each axis."""
    return int(image_size[0] / crop_share), int(image_size[1] / crop_share)


def covering_size(image: Pair, image_size: Pair, crop_share: float) -> Pair:
    """The (height, width) to resize to, aspect kept, so that image size / crop share just fits into it."""
    height, width = outer_size(image_size, crop_share)
    if image[1] * height <= image[0] * width:
        return width * image[0] // image[1], width
    return height, height * image[1] // image[0]


def holding_size(image: Pair, image_size: Pair, crop_share: float) -> Pair:
    """The (height, width) an image is resized to, aspect kept, so that it just fits into image size / crop share."""
    height, width = outer_size(image_size, crop_share)
    factor = max(image[0] / height, image[1] / width)
    return max(1, round(image[0] / factor)), max(1, round(image[1] / factor))


def in_words(preprocessing: Preprocessing, image_size: Pair) -> str:
    """What evaluation does to an image, for whoever has to do it without beitkit."""
    shown, (height, width) = preprocessing, image_size
    is_whole = shown.shows_whole(image_size)
    outer = image_size if is_whole else outer_size(image_size, shown.crop_share)
    if is_whole:
        fitted = f"the whole image resized to {height}x{width}"
    elif shown.fit == "letterbox":
        fitted = f"the image resized to fit into {outer[0]}x{outer[1]} and put on the mean color"
    elif shown.fit == "squeeze":
        fitted = f"the whole image resized to {outer[0]}x{outer[1]}"
    else:
        fitted = f"the image resized to just cover {outer[0]}x{outer[1]}"
    cut = "" if outer == image_size and (is_whole or shown.fit != "crop") else f", then the center of {height}x{width}"
    return f"{fitted} ({shown.filter}){cut}; mean {list(shown.mean)}, deviation {list(shown.std)} of values from 0 to 1"


def cut_away(image: Pair, image_size: Pair, preprocessing: Preprocessing) -> float:
    """Share of an image's area that evaluation does not show, because of its shape and of the crop share."""
    if preprocessing.shows_whole(image_size):
        return 0.0
    sizes = {"crop": covering_size, "letterbox": holding_size, "squeeze": lambda _, size, share: outer_size(size, share)}
    height, width = sizes[preprocessing.fit](image, image_size, preprocessing.crop_share)
    return 1.0 - min(1.0, image_size[0] / height) * min(1.0, image_size[1] / width)
