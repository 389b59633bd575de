"""Mapping from mask values or colors to classes: from `classes.json`, a known data set, or the values that occur.

A label map is an array or a Pillow image in mode "L" of class ids; 255 is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.model import MAX_CLASSES
from beitkit.configs.segmentation import Color, default_palette
from beitkit.contracts import IGNORED
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.scenes.masks import NUM_VALUES, Mask, packed, unpacked
from beitkit.errors import UserError, few
from beitkit.files import read_json, why

UNKNOWN = -1  # in a lookup table: a value that nobody has declared
SHOWN = 6  # colors or values that an error names
KEYS = ("names", "colors", "ids", "ignore", "reduce_zero_label")


@dataclass(frozen=True, kw_only=True)
class LabelMapping:
    """What the pixels of masks mean: class names, the class of a value or a color, and what is ignored."""

    classes: tuple[str, ...]
    values: tuple[tuple[int, int], ...]
    """(pixel value, class id or 255) for index and palette masks."""
    colors: tuple[tuple[Color, int], ...] = ()
    """(color, class id or 255) for RGB masks; none where only values are known."""
    palette: tuple[Color, ...]
    """The color in which each class is shown."""
    source: str = field(compare=False)
    """Where this was found, for messages: a file, or how it was found out."""

    @cached_property
    def _by_value(self) -> NDArray[np.int16]:
        table = np.full(NUM_VALUES, UNKNOWN, dtype=np.int16)
        for value, label in self.values:
            table[value] = label
        return table

    @cached_property
    def _by_color(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Packed colors, sorted, and the class of each."""
        numbers = packed(np.array([color for color, _ in self.colors]))
        order = np.argsort(numbers)
        return numbers[order], np.array([label for _, label in self.colors], dtype=np.uint8)[order]

    def label_map(self, mask: Mask) -> NDArray[np.uint8]:
        """Class ids (h, w) of a mask.

        Raises:
            BrokenImage: a value or a color that the code does not have.
        """
        return self._of_colors(mask) if mask.is_color else self._of_values(mask)

    def as_json(self) -> str:
        """The code as a `classes.json` that reads back as the same code."""
        ignored = [value for value, label in self.values if label == IGNORED]
        ignored_colors = [list(color) for color, label in self.colors if label == IGNORED]
        ids = {str(value): label for value, label in self.values if label != IGNORED}
        content = {"names": list(self.classes), "ids": ids, "ignore": [*ignored, *ignored_colors]}
        if self.colors:
            content["colors"] = [self._written_colors(label) for label in range(len(self.classes))]
        return json.dumps(content, ensure_ascii=False) + "\n"

    def _written_colors(self, label: int) -> list[int] | list[list[int]]:
        """The color of a class, or all of them where it has several, the one it is shown in first."""
        shown = self.palette[label]
        more = [list(color) for color, owner in self.colors if owner == label and color != shown]
        return [list(shown), *more] if more else list(shown)

    def _of_values(self, mask: Mask) -> NDArray[np.uint8]:
        if mask.palette and self.colors:
            self._check_palette(mask)
        ids = self._by_value[mask.pixels]
        if (ids == UNKNOWN).any():
            unknown = np.unique(mask.pixels[ids == UNKNOWN]).tolist()
            raise BrokenImage(mask.path, self._unknown_value(unknown))
        return ids.astype(np.uint8)

    def _of_colors(self, mask: Mask) -> NDArray[np.uint8]:
        if not self.colors:
            raise BrokenImage(mask.path, f"holds colors, but {self.source} has no colors; give a list of them in classes.json")
        known, labels = self._by_color
        pixels = packed(mask.pixels)
        place = np.searchsorted(known, pixels).clip(max=len(known) - 1)
        is_unknown = known[place] != pixels
        if is_unknown.any():
            found, counts = np.unique(pixels[is_unknown], return_counts=True)
            shown = unpacked(found[np.argsort(-counts, kind="stable")][:SHOWN])
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise BrokenImage(
                mask.path,
                f"has the color {', '.join(map(str, map(list, shown)))}{more}, which {self.source} does not list; "
                "add it to colors or to ignore (colors nearly alike come from a lossy or smoothed copy)",
            )
        return labels[place]

    def _check_palette(self, mask: Mask) -> None:
        """Refuse a palette that contradicts the table: a program that rewrote the file may have renumbered its indices."""
        classes = dict(self.colors)
        for index in mask.occurring().tolist():
            color = mask.palette[index] if index < len(mask.palette) else None
            by_value, by_color = int(self._by_value[index]), classes.get(color) if color is not None else None
            if by_color is not None and by_color != by_value:
                raise BrokenImage(
                    mask.path,
                    f"index {index} has the color {list(color or ())} of {self._name(by_color)}, but {self.source} gives the "
                    f"index to {self._name(by_value)}; save the mask in RGB to have it read by colors",
                )

    def _name(self, label: int) -> str:
        return {IGNORED: "what is ignored", UNKNOWN: "no class"}.get(label) or f"class {self.classes[label]!r}"

    def _unknown_value(self, unknown: Sequence[int]) -> str:
        ignored = sorted(value for value, label in self.values if label == IGNORED)
        if IGNORED in unknown and not ignored:
            return (
                f"has the value 255, but {self.source} says that nothing is ignored; add 255 to ignore, or give it a class in ids"
            )
        known = [value for value, label in self.values if label != IGNORED]
        shown = few(unknown, SHOWN)
        return (
            f"has the value {shown}; {self.source} has {len(self.classes)} classes with values from {min(known)} to {max(known)} "
            f"and ignores {', '.join(map(str, ignored)) or 'nothing'}: correct the mask, or names, ids or ignore in classes.json"
        )


def read_classes(path: Path) -> LabelMapping:
    """The label code that a `classes.json` describes.

    Keys: `names`, a list, required; `colors`, one [r, g, b] per name, or a list of these of which the first is shown; `ids`, an
    object from pixel value to name or class number (without it value i is class i); `ignore`, a list of values and colors
    (without it [255]); `reduce_zero_label`, true where value 0 is ignored and value i is class i - 1.

    Raises:
        UserError: unreadable, an unknown key, a wrong type, or a contradiction; the message names file and key.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}; give a classes.json as `classes`") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not set(content) <= set(KEYS):
        found = sorted(set(content) - set(KEYS)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} must hold one object with the keys {', '.join(KEYS)}; found {found}")
    names = checked_names(f"{path}: names", content.get("names"))
    colors = _colors(path, content.get("colors"), names)
    values, ignored_colors = _values(path, content, names)
    by_color = {color: label for label, several in enumerate(colors) for color in several}
    both = next((color for color in ignored_colors if color in by_color), None)
    if both is not None:
        raise UserError(f"{path}: the color {list(both)} is ignored and is the color of {names[by_color[both]]!r}; keep one")
    table = by_color | dict.fromkeys(ignored_colors, IGNORED) if colors else {}
    return LabelMapping(
        classes=names,
        values=tuple(sorted(values.items())),
        colors=tuple(table.items()),
        palette=tuple(several[0] for several in colors) or default_palette(len(names)),
        source=str(path),
    )


def plain_code(
    names: Sequence[str],
    source: str,
    *,
    values: Sequence[int] | None = None,
    ignored: Sequence[int] = (IGNORED,),
    palette: Sequence[Color] = (),
) -> LabelMapping:
    """A code in which class i has the i-th of `values` (without them: value i) and the i-th color of `palette`, if any."""
    known = dict(zip(range(len(names)) if values is None else values, range(len(names)), strict=True))
    return LabelMapping(
        classes=tuple(names),
        values=tuple(sorted((known | dict.fromkeys(ignored, IGNORED)).items())),
        colors=tuple((color, label) for label, color in enumerate(palette)),
        palette=tuple(palette) or default_palette(len(names)),
        source=source,
    )


def voc_palette(count: int) -> tuple[Color, ...]:
    """Pascal VOC's colors: the bits of the number dealt to red, green and blue, the highest first; 0 is black."""
    palette: list[Color] = []
    for number in range(count):
        red = green = blue = 0
        for place in range(3):
            bits = number >> (3 * place)
            red |= (bits & 1) << (7 - place)
            green |= (bits >> 1 & 1) << (7 - place)
            blue |= (bits >> 2 & 1) << (7 - place)
        palette.append((red, green, blue))
    return tuple(palette)


def checked_names(where: str, names: object) -> tuple[str, ...]:
    """A list of class names, found where messages say.

    Raises:
        UserError: something else, a single class or too many, or a name twice.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f'{where} must be a list of class names, such as ["road", "sky"]')
    if not 2 <= len(names) <= MAX_CLASSES:
        # With one class every answer is right and there is nothing to learn: the background is a class too.
        raise UserError(f"{where} lists {len(names)} classes; there must be 2 to {MAX_CLASSES}, the background being one")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where} lists {twice!r} twice")
    return tuple(names)


def _colors(path: Path, colors: object, names: Sequence[str]) -> tuple[tuple[Color, ...], ...]:
    """All colors of each class."""
    if colors is None:
        return ()
    if not isinstance(colors, list) or len(colors) != len(names):
        found = len(colors) if isinstance(colors, list) else type(colors).__name__
        raise UserError(f"{path}: colors must list one [red, green, blue] for each of the {len(names)} names, found {found}")
    read = [_colors_of_one(path, entry) for entry in colors]
    every = [color for several in read for color in several]
    twice = next((color for color in every if every.count(color) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: colors lists {list(twice)} twice; each class needs its own color")
    return tuple(read)


def _colors_of_one(path: Path, entry: object) -> tuple[Color, ...]:
    """[red, green, blue], or a list of such."""
    several = entry if isinstance(entry, list) and entry and isinstance(entry[0], list) else [entry]
    return tuple(_color(path, "colors", color) for color in several)


def _color(path: Path, key: str, color: object) -> Color:
    if isinstance(color, list) and len(color) == 3 and all(type(part) is int and 0 <= part <= 255 for part in color):
        return color[0], color[1], color[2]
    raise UserError(f"{path}: {key} holds {json.dumps(color)}, expected [red, green, blue] with numbers from 0 to 255")


def _values(path: Path, content: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[int, int], list[Color]]:
    """The class of each pixel value, and the colors that are ignored."""
    reduces = content.get("reduce_zero_label", False)
    if not isinstance(reduces, bool):
        raise UserError(f"{path}: reduce_zero_label must be true or false, got {json.dumps(reduces)}")
    if reduces and "ids" in content:
        raise UserError(f"{path}: ids and reduce_zero_label both say what values mean; remove one of them")
    first = 1 if reduces else 0
    values = _ids(path, content["ids"], names) if "ids" in content else {first + i: i for i in range(len(names))}
    ignore = content.get("ignore", [IGNORED] if IGNORED not in values else [])
    if not isinstance(ignore, list):
        raise UserError(f"{path}: ignore must be a list of pixel values and colors, got {json.dumps(ignore)}")
    colors: list[Color] = []
    for entry in [*ignore, *([0] if reduces else [])]:
        if isinstance(entry, list):
            colors.append(_color(path, "ignore", entry))
        elif type(entry) is int and 0 <= entry < NUM_VALUES:
            if values.get(entry, IGNORED) != IGNORED:
                raise UserError(f"{path}: the value {entry} is ignored and is class {names[values[entry]]!r}; keep one")
            values[entry] = IGNORED
        else:
            raise UserError(f"{path}: ignore holds {json.dumps(entry)}, expected a pixel value or [red, green, blue]")
    return values, colors


def _ids(path: Path, ids: object, names: Sequence[str]) -> dict[int, int]:
    if not isinstance(ids, dict) or not ids:
        raise UserError(f'{path}: ids must be an object from pixel value to class, such as {{"7": "road"}}')
    values: dict[int, int] = {}
    for value, label in ids.items():
        if not (value.isascii() and value.isdigit() and int(value) < NUM_VALUES):
            raise UserError(f"{path}: ids has the key {value!r}, expected a pixel value from 0 to {NUM_VALUES - 1}")
        if isinstance(label, str) and label in names:
            values[int(value)] = names.index(label)
        elif type(label) is int and 0 <= label < len(names):
            values[int(value)] = label
        else:
            raise UserError(
                f"{path}: ids gives value {value} to {json.dumps(label)}, which is neither a name nor a number below {len(names)}"
            )
    return values
