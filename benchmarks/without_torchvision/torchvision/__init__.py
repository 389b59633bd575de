"""Stands in for torchvision where it is not installed: timm imports it, but its BEiT uses nothing of it.

    PYTHONPATH=benchmarks/without_torchvision beitkit bench --against timm

Every module and class that is asked for is there, and none does anything.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

SUBMODULES = ("datasets", "models", "models.feature_extraction", "ops", "ops.misc", "transforms", "transforms.functional")
__path__: list[str] = []


class _Anything(ModuleType):
    __path__: list[str] = []  # noqa: RUF012
    __file__ = "stub"

    def __getattr__(self, name: str) -> Any:
        return _stub(name)


def _stub(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"NEAREST": 0, "BILINEAR": 2, "BICUBIC": 3, "BOX": 4, "HAMMING": 5, "LANCZOS": 1})


def __getattr__(name: str) -> Any:
    return _stub(name)


for _name in SUBMODULES:
    _module = _Anything(f"{__name__}.{_name}")
    sys.modules[_module.__name__] = _module
    _parent, _, _child = _module.__name__.rpartition(".")
    setattr(sys.modules[_parent], _child, _module)
