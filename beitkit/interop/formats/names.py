"""Name tables between official and other tensor names, used in both directions.

A rule pairs an official name with a foreign one. `{i}` and `{j}` stand for a number, `{p}` for `weight` or `bias`, `{rest}`
for anything, `{name}` for letters. A rule with several foreign names: the official tensor is their concatenation
along dimension 0. Official names are those of the classification and masked-image networks of BEiT's release, without any
prefix; the feature pyramid of a segmentation network counts as `fpn1...` and `fpn2...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

PATTERNS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "rest": ".+", "name": "[a-z]+"}


class Rule(NamedTuple):
    """An official name and its foreign counterpart, or counterparts."""

    official: str
    foreign: tuple[str, ...]


class OfficialPart(NamedTuple):
    """Official name of a foreign tensor, and which of how many parts it is."""

    official: str
    part: int
    parts: int


@dataclass(frozen=True)
class NameTable:
    """Rules tried from first to last."""

    rules: tuple[Rule, ...]

    def to_official(self, foreign: str) -> OfficialPart | None:
        """Official name of a foreign name; None if no rule matches."""
        for rule in self.rules:
            for part, template in enumerate(rule.foreign):
                match = _pattern(template).fullmatch(foreign)
                if match:
                    return OfficialPart(rule.official.format(**match.groupdict()), part, len(rule.foreign))
        return None

    def to_foreign(self, official: str) -> tuple[str, ...] | None:
        """The foreign name or names of an official tensor; None if the layout has no place for it."""
        for rule in self.rules:
            match = _pattern(rule.official).fullmatch(official)
            if match:
                return tuple(template.format(**match.groupdict()) for template in rule.foreign)
        return None

    def unknown(self, foreign: Iterable[str]) -> list[str]:
        """Names that no rule knows."""
        return [name for name in foreign if self.to_official(name) is None]


def table(*rules: tuple[str, str | tuple[str, ...]]) -> NameTable:
    """A table from (official, foreign) pairs."""
    return NameTable(tuple(Rule(official, (foreign,) if isinstance(foreign, str) else foreign) for official, foreign in rules))


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(f"(?P<{piece}>{PATTERNS[piece]})" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))
    )
