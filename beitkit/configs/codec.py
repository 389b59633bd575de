"""Config dataclasses to JSON and back, strictly: unknown or invalid values are errors that name the key.

`to_json` writes every field, so that a file is complete on its own; `from_json` accepts exactly the fields of the class. A field
that files from before do not have is declared with `later`: it is written only where it does not hold its default.
Numbers, strings, bools, None, `Path`, `Literal`, tuples, unions and nested dataclasses are understood.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from beitkit.errors import UserError, few

NOT_PART_OF_A_RUN = (
    "out",
    "machine.threads",
    "machine.workers",
    "speed.compile",
    "speed.recompute",
    "speed.sharding",
    "loop.log_every",
    "loop.save_every",
    "loop.max_setbacks",
    "loop.check_contents",
    "read.max_broken",
    "read.cache",
    "budget",
    "log",
    "read.timeout",
    "compare",
    "json",
    "list",
    "workers",
)
"""Fields that a continued run may change: they do not change what comes out (threads and sharding: but for rounding)."""

T = TypeVar("T")
LATER = "later"
MOST_SHOWN = 60
"""Characters of a key that a message names."""
MOST_NAMED = 20
"""Keys that a message names."""


def later(default: T) -> T:
    """A field that came after files were written: they are read as if they held its default, and their digests stay."""
    return dataclasses.field(default=default, metadata={LATER: True})


def to_json(config: object) -> dict[str, Any]:
    """A config dataclass as nested dicts, lists, numbers and strings, one key per field."""
    assert dataclasses.is_dataclass(config)
    values = [(field, getattr(config, field.name)) for field in dataclasses.fields(config)]
    return {field.name: as_json(value) for field, value in values if LATER not in field.metadata or value != field.default}


def from_json(cls: type[T], data: object, *, where: str = "") -> T:
    """The config dataclass `cls`, whose own checks run, from what `to_json` made of it; `where` is its file, for messages.

    Raises:
        UserError: naming the key, for a missing or unknown key or a value of another type.
    """
    return _decode_dataclass(cls, data, f"{where}: " if where else "", ())


def changed_by_json(config: T, data: dict[str, Any], name: str) -> T:
    """A config with the fields that `data`, nested like `to_json`'s result but with some fields only, gives.

    Raises:
        UserError: naming the key, for an unknown one or a value of another type.
    """
    types_of = get_type_hints(type(config), include_extras=True)
    changes: dict[str, Any] = {}
    for key, value in data.items():
        if key not in types_of:
            raise UserError(f"unknown `{name}.{str(key)[:MOST_SHOWN]}`; `{name}` has {', '.join(types_of)}")
        inner = getattr(config, key)
        is_part = dataclasses.is_dataclass(inner) and isinstance(value, dict)
        changes[key] = (
            changed_by_json(inner, value, f"{name}.{key}") if is_part else _decode(types_of[key], value, "", (name, key))
        )
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def as_json(value: object) -> Any:
    """A value of a config as JSON has it: tuples are lists, paths text."""
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    assert value is None or isinstance(value, str | bool | int | float), f"{type(value).__name__} has no JSON form"
    return value


def _decode_dataclass(cls: Any, data: object, where: str, path: tuple[str, ...]) -> Any:
    if not isinstance(data, dict):
        raise UserError(f"{where}{_name(path)} must be an object with the fields of {cls.__name__}, got {short(data)}")
    types_of = get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    names = list(fields)
    unknown = [key for key in data if key not in names]
    missing = [name for name in names if name not in data and LATER not in fields[name].metadata]
    for keys, problem in ((unknown, "unknown"), (missing, "missing")):
        if keys:
            listed = few([_name((*path, short(key).strip("'"))) for key in keys[:MOST_NAMED]], MOST_NAMED)
            raise UserError(f"{where}{problem} {listed}; {cls.__name__} has exactly: {', '.join(names)}")
    values = {name: _decode(types_of[name], data[name], where, (*path, name)) for name in names if name in data}
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}{error}") from None


def _decode(kind: Any, data: object, where: str, path: tuple[str, ...]) -> Any:
    origin, parameters = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _decode(parameters[0], data, where, path)
    if origin in (Union, types.UnionType):
        return _decode_union(parameters, data, where, path)
    if origin is Literal:
        if not any(data == choice and type(data) is type(choice) for choice in parameters):
            raise UserError(f"{where}{_name(path)} must be one of {', '.join(map(repr, parameters))}, got {short(data)}")
        return data
    if origin is tuple:
        return _decode_tuple(parameters, data, where, path)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where, path)
    return _decode_scalar(kind, data, where, path)


def _decode_union(choices: tuple[Any, ...], data: object, where: str, path: tuple[str, ...]) -> Any:
    if data is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    for choice in rest[:-1]:
        try:
            return _decode(choice, data, where, path)
        except UserError:
            continue
    return _decode(rest[-1], data, where, path)


def _decode_tuple(items: tuple[Any, ...], data: object, where: str, path: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):  # a tuple where a caller of the Python functions gives a part as a dict
        raise UserError(f"{where}{_name(path)} must be a list, got {short(data)}")
    kinds = [items[0]] * len(data) if len(items) == 2 and items[1] is Ellipsis else list(items)
    if len(kinds) != len(data):
        raise UserError(f"{where}{_name(path)} must have {len(kinds)} values, got {len(data)}")
    return tuple(
        _decode(kind, item, where, (*path, str(index))) for index, (kind, item) in enumerate(zip(kinds, data, strict=True))
    )


def _decode_scalar(kind: Any, data: object, where: str, path: tuple[str, ...]) -> Any:
    if kind is Path and isinstance(data, str | Path):
        return Path(data)
    if kind is float and type(data) in (int, float):
        with contextlib.suppress(OverflowError):  # a whole number may be larger than any float
            if math.isfinite(number := float(data)):  # type: ignore[arg-type]
                return number
    if kind in (int, str, bool) and type(data) is kind:  # type() so that true is not taken for 1
        return data
    raise UserError(f"{where}{_name(path)} must be {_KINDS[kind]}, got {short(data)}")


_KINDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", Path: "a path"}


def _name(path: tuple[str, ...]) -> str:
    return ".".join(path) or "the config"


def short(data: object) -> str:
    """A value for a message; its inside is not walked to the end, for there may be no end."""
    text = _SHORT.repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong = 2, 60, 60


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as JSON with one level only, its names dotted: {"train.seed": 0, ...}."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        values.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return values
