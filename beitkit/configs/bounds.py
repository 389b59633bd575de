"""Frozen config dataclasses with bounds of numbers declared in the types of their fields.

    @config("mask")
    class MaskConfig:
        ratio: Annotated[float, Bounds(gt=0, lt=1)] = 0.4

refuses a ratio of 1.5 by "`mask.ratio` must lie in (0, 1), got 1.5". Conditions on several fields are checked in `__post_init__`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from beitkit.errors import UserError

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of a number, or of each number in a tuple; None and words have none. Named like the comparisons, as in pydantic."""

    gt: int | float = -math.inf
    ge: int | float = -math.inf
    lt: int | float = math.inf
    le: int | float = math.inf
    is_range: bool = False
    """Whether a tuple holds the smallest value, then the largest."""
    is_distinct: bool = False
    """Whether a tuple must hold values, and none twice."""
    min_length: int = 0
    """Of a tuple."""

    def admit(self, number: int | float) -> bool:
        """Whether a number lies within; NaN and the infinities never do."""
        return self.gt < number < self.lt and self.ge <= number <= self.le

    def __str__(self) -> str:
        """The bounds, to follow "must"."""
        low, high = max(self.gt, self.ge), min(self.lt, self.le)
        if high < math.inf:
            return f"lie in {'[' if self.ge == low else '('}{low}, {high}{']' if self.le == high else ')'}"
        if low == 0:
            return "be positive" if self.gt == 0 else "not be negative"
        return f"be {'at least' if self.ge == low else 'above'} {low}"


PositiveInt = Annotated[int, Bounds(ge=1)]
NonNegativeInt = Annotated[int, Bounds(ge=0)]
PositiveFloat = Annotated[float, Bounds(gt=0)]
NonNegativeFloat = Annotated[float, Bounds(ge=0)]
Share = Annotated[float, Bounds(ge=0, le=1)]
"""A share or a probability."""
PositiveShare = Annotated[float, Bounds(gt=0, le=1)]
ShareBelowOne = Annotated[float, Bounds(ge=0, lt=1)]
Seed = Annotated[int, Bounds(ge=0, lt=2**63)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(prefix: str = "", *, kw_only: bool = True) -> Callable[[type[Config]], type[Config]]:
    """Make a class a frozen dataclass that checks its fields first, then runs its own `__post_init__`.

    Under `prefix` verbs hold such a config (`mask`), for messages; it is empty for a verb's own, and for parts whose options are
    written without a prefix.
    """

    def decorate(cls: type[Config]) -> type[Config]:
        relate = getattr(cls, "__post_init__", None)

        def post_init(self: Any) -> None:
            _check(self, prefix)
            if relate is not None:
                relate(self)

        cls.__post_init__ = post_init  # type: ignore[attr-defined]
        return dataclass(frozen=True, kw_only=kw_only)(cls)

    return decorate


def _check(config: Any, prefix: str) -> None:
    """Raise a `UserError` unless every field lies within its bounds; numbers must be finite in any case."""
    bounds = _bounds_of(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        if problem := _problem(value, bounds[field.name]):
            values = value if isinstance(value, tuple) else (value,)
            given = " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values) or "none"
            raise UserError(f"`{prefix}{'.' if prefix else ''}{field.name}` must {problem}, got {given}")


def _problem(value: object, bounds: Bounds) -> str:
    """What a value must be and is not, to follow "must"; empty where it is."""
    values = value if isinstance(value, tuple) else (value,)
    numbers = [one for one in values if isinstance(one, int | float)]
    if bounds.is_distinct and len(set(values)) != max(1, len(values)):
        return "name each at most once, and at least one"
    if len(values) < bounds.min_length:
        return f"name at least {bounds.min_length}"
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "be a finite number"
    if not all(map(bounds.admit, numbers)):
        return str(bounds)
    if bounds.is_range and numbers != sorted(numbers):
        return "be the smallest value, then the largest"
    return ""


@cache
def _bounds_of(cls: type) -> dict[str, Bounds]:
    """The bounds of every field; a field has one at most, which may be declared inside a union or a tuple."""
    found: dict[str, Bounds] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        (found[name],) = _declared(hint) or {Bounds()}
    return found


def _declared(hint: Any) -> set[Bounds]:
    return {hint} if isinstance(hint, Bounds) else set[Bounds]().union(*map(_declared, get_args(hint)))
