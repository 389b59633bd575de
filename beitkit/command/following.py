"""The command that a verb names as the next one: it can be copied as it is.

What only the reader has is a word in capitals: IMAGES (a folder or list of images), LABELED (images with labels), SCENES (images
with masks), MODEL (a run folder or checkpoint), TOKENIZER, NAME (of a recipe).
"""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

from beitkit.command.options import options_of
from beitkit.system import quoted
from beitkit.terminal import with_slashes


def command(verb: str, *inputs: object, **options: object) -> str:
    """A command, quoted for a shell; options that are None or False are left out, one that is True is a flag.

    Args:
        verb: of beitkit.
        inputs: what stands before the options.
        options: as Python names them (`image_size=96`), or as they are typed (`**{"--view.flip": False}`, see `kept`).
    """
    words = ["beitkit", verb, *map(_word, inputs)]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(name if name.startswith("--") else f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(_word, value if isinstance(value, tuple | list) else (value,))
    return with_slashes(" ".join(words))


def kept(config: Any, *names: str) -> dict[str, object]:
    """The options of a config that do not have their default, as typed, for another command.

    Args:
        config: of a verb.
        names: its fields (`image_size`), or parts, all of whose fields are meant (`columns`).
    """
    found: dict[str, object] = {}
    for option in options_of(type(config)):
        if option.field in names or option.field.partition(".")[0] in names:
            value = config
            for name in option.path.split("."):
                value = getattr(value, name)
            if value != option.default:
                found[option.name] = True if isinstance(value, bool) else value
    return found


def unused(path: Path) -> Path:
    """A path where nothing is yet: this one, or with a number behind its name."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def beside(path: Path, name: str) -> Path:
    """A name for a new folder beside a run's; in runs/ where that is on no disk, or in a room for all of them."""
    folder = path.parent if path.is_dir() else Path("runs")
    return unused(folder / name)


def _word(value: object) -> str:
    return quoted(value) if isinstance(value, Path) else shlex.quote(f"{value:.12g}" if isinstance(value, float) else str(value))
