"""The options of a verb, read off the dataclass that holds them."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import re
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional

from beitkit.configs.parts import Flat, From

REQUIRED = dataclasses.MISSING
FIELD = re.compile(r"`([a-z_.]+)(?:=['\"]?([^`'\"]*)['\"]?)?`")
"""A field of a config in a message, alone or with a value: `read.max_broken`, `precision='float32'`."""

NEGATED = re.compile(r"[-.]no-")
"""In the name of a flag that turns off what is on."""


class Option(NamedTuple):
    """One option of a verb."""

    field: str
    """As messages and config files name it, such as mask.min_block; those of flat parts have no prefix."""
    name: str
    """As it is typed: --mask.min-block, or IMAGES."""
    kind: Any
    """Its type."""
    default: Any
    """REQUIRED where there is none."""
    text: str
    """Its docstring, in which options are named as they are typed."""
    path: str
    """Where it stands in a stored config: `train.lr` for the field `lr`."""
    owner: type[Any]
    """The class that it is a field of."""

    @property
    def is_positional(self) -> bool:
        """Whether it is typed without a name."""
        return not self.name.startswith("--")

    @property
    def is_required(self) -> bool:
        """Whether the command has to give it."""
        return self.default is REQUIRED

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; none where it takes others."""
        return tuple(dict.fromkeys(_words(self.kind)))

    @property
    def metavar(self) -> str:
        """What stands behind its name in a usage line; nothing for a flag."""
        return "" if self.kind is bool or isinstance(self.default, bool) else _metavar(self.kind)


@functools.cache
def options_of(config: type[Any]) -> tuple[Option, ...]:
    """The options of a verb's config, in the order in which `--help-all` lists them."""
    texts: dict[str, str] = getattr(config, "TEXTS", {})
    found = [option._replace(text=texts.get(option.field, option.text)) for option in _options(config, "", "", None)]
    return tuple(option._replace(text=with_options(option.text, config)) for option in found)


def _options(config: type[Any], prefix: str, path: str, defaults: Any) -> list[Option]:
    """The options of a (part of a) config; `defaults` is the instance that holds the part's defaults, None for the whole."""
    hints, texts = get_type_hints(config, include_extras=True), docstrings(config)
    found: list[Option] = []
    for field in dataclasses.fields(config):
        hint, default = hints[field.name], _default(field) if defaults is None else getattr(defaults, field.name)
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        inner = get_args(hint)[0] if marks else hint
        if tyro.conf.Suppress in marks:
            continue
        if Flat in marks:
            found += _options(inner, prefix, f"{path}{field.name}.", default)
        elif dataclasses.is_dataclass(inner):
            found += _options(inner, f"{prefix}{field.name}.", f"{path}{field.name}.", default)  # type: ignore[arg-type]
        else:
            typed = "--" + ("from" if From in marks else f"{prefix}{field.name}".replace("_", "-"))
            if Positional in marks:
                typed = field.name.upper()
            elif inner is bool and default is True:
                typed = f"--{prefix}no-{field.name}".replace("_", "-")
            found.append(
                Option(f"{prefix}{field.name}", typed, inner, default, texts.get(field.name, ""), f"{path}{field.name}", config)
            )
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def docstrings(config: type[Any]) -> dict[str, str]:
    """The strings below the fields of a class and of those it inherits from, or in their types, on one line each."""
    texts: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = " ".join(str(below.value.value).split())
    hints = get_type_hints(config, include_extras=True)
    told = {name: [getattr(mark, "help", None) for mark in get_args(hint)[1:]] for name, hint in hints.items()}
    texts |= {name: text for name, found in told.items() for text in found if isinstance(text, str)}
    return {field.name: texts[field.name] for field in dataclasses.fields(config) if field.name in texts}


@functools.cache
def option_names(config: type[Any]) -> dict[str, str]:
    """What the command line calls the fields of a verb's config, such as `--mask.min-block` for `mask.min_block`.

    The keys are the names by which messages call the fields (see `UserError`). Fields of flat parts, such as `lr`, have no
    prefix; positional arguments are named as `--help` names them, such as IMAGES for `images`; a part is named as well.
    """
    names = {option.field: option.name for option in _options(config, "", "", None)}
    parts = {field.rpartition(".")[0] for field in names}
    return names | {part: f"--{part.replace('_', '-')}" for part in parts if part}


def with_options(text: str, config: type[Any]) -> str:
    """A text with options where it names fields of a verb's config: --read.max-broken for `read.max_broken`.

    Messages and help are written for Python callers, who set fields. What is no field of this config stays as it is.
    """
    options = option_names(config)

    def typed(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in options:
            return found[0]
        is_flag = value in (None, "True") or (value == "False" and NEGATED.search(options[name]))
        return options[name] if is_flag else f"{options[name]} {value}"

    return FIELD.sub(typed, text)


def written(value: Any) -> str:
    """A value as people write it: 0.0816 for 0.08163265306122448, several with spaces between."""
    if isinstance(value, tuple | list):
        return " ".join(map(written, value))
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.3g}" if value != int(value) or abs(value) >= 1e6 else f"{int(value)}"
    return str(value)


def _metavar(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _metavar(inner[0])
    if origin in (Union, types.UnionType):
        words = [word for one in inner if get_origin(one) is Literal for word in get_args(one)]
        others = [_metavar(one) for one in inner if get_origin(one) is not Literal and one is not type(None)]
        return "|".join(dict.fromkeys([*(["{" + ",".join(map(str, words)) + "}"] if words else []), *others]))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple:
        several = len(inner) == 2 and inner[1] is Ellipsis
        return f"{_metavar(inner[0])} ..." if several else " ".join(map(_metavar, inner))
    return {Path: "PATH", int: "INT", float: "FLOAT", bool: ""}.get(kind, "TEXT")


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [word for inner in get_args(kind) if inner is not Ellipsis for word in _words(inner)]
