"""Bounds of config fields: what is refused and in which words, and that a message names a field as verbs hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from beitkit.configs.bounds import Bounds, PositiveFloat, PositiveInt, Share, config
from beitkit.configs.parts import Flat
from beitkit.errors import UserError
from beitkit.verbs import VERBS


@config("part")
class Example:
    count: PositiveInt | None = 1
    rate: PositiveFloat = 1.0
    offset: Annotated[int, Bounds(ge=-1)] = 0
    ratio: Annotated[float, Bounds(gt=0, lt=1)] = 0.5
    betas: tuple[Share, Share] = (0.0, 1.0)
    scale: Annotated[tuple[float, float], Bounds(gt=0, is_range=True)] = (1.0, 1.0)
    blocks: Annotated[tuple[int, ...], Bounds(ge=1, is_distinct=True)] | None = None
    names: Annotated[tuple[str, ...], Bounds(min_length=1)] = ("a", "a")
    more: tuple[str, ...] = ()
    free: float = 0.0

    def __post_init__(self) -> None:
        if self.offset > self.rate:
            raise UserError("its own check")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "`part.count` must be at least 1, got 0"),
        ({"rate": 0.0}, "`part.rate` must be positive, got 0"),
        ({"offset": -2}, "`part.offset` must be at least -1, got -2"),
        ({"ratio": 1.0}, "`part.ratio` must lie in (0, 1), got 1"),
        ({"betas": (0.5, 1.5)}, "`part.betas` must lie in [0, 1], got 0.5 1.5"),
        ({"scale": (2.0, 1.0)}, "`part.scale` must be the smallest value, then the largest, got 2 1"),
        ({"scale": (0.0, 1.0)}, "`part.scale` must be positive, got 0 1"),
        ({"blocks": (2, 2)}, "`part.blocks` must name each at most once, and at least one, got 2 2"),
        ({"blocks": ()}, "`part.blocks` must name each at most once, and at least one, got none"),
        ({"blocks": (0, 1)}, "`part.blocks` must be at least 1, got 0 1"),
        ({"names": ()}, "`part.names` must name at least 1, got none"),
        ({"free": math.nan}, "`part.free` must be a finite number, got nan"),
        ({"rate": math.inf}, "`part.rate` must be a finite number, got inf"),
        ({"betas": (0.5, math.nan)}, "`part.betas` must be a finite number, got 0.5 nan"),
        ({"offset": 2, "rate": 1.0}, "its own check"),
        ({"offset": 2, "rate": math.nan}, "`part.rate` must be a finite number, got nan"),
    ],
)
def test_what_lies_outside_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Example(**options)
    assert str(refused.value) == message


def test_what_lies_inside_is_taken() -> None:
    config = Example(count=None, betas=(0.0, 1.0), blocks=(3, 1))
    assert (config.count, config.blocks) == (None, (3, 1))


def configs(cls: type, prefix: str = "") -> Iterator[tuple[type, str]]:
    """A config class and those of its parts, each with the prefix of its options."""
    yield cls, prefix
    for name, hint in get_type_hints(cls, include_extras=True).items():
        part = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if is_dataclass(part):
            yield from configs(part, prefix if Flat in get_args(hint) else f"{prefix}{name}.")  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_is_checked_under_its_name_in_the_verb(verb: str) -> None:
    for cls, prefix in configs(VERBS[verb].config_class()):
        for field in fields(cls):  # type: ignore[arg-type]
            wrong = object.__new__(cls)
            for other in fields(cls):  # type: ignore[arg-type]
                object.__setattr__(wrong, other.name, math.nan if other.name == field.name else None)
            with pytest.raises(UserError) as refused:
                wrong.__post_init__()  # type: ignore[attr-defined]
            assert str(refused.value) == f"`{prefix}{field.name}` must be a finite number, got nan"
