"""Stands in for torchvision where it is not installed: timm imports it, but its BEiT uses nothing of it.

    PYTHONPATH=benchmarks/without_torchvision beitkit bench --against timm

Python runs this file when it starts. Once timm is being imported, every module and class of torchvision one asks for is there,
and none does anything; whoever looks for torchvision before, as transformers does, does not find it.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Anything(ModuleType):
    """A module that has every class one asks for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"NEAREST": 0, "BILINEAR": 2, "BICUBIC": 3, "BOX": 4, "HAMMING": 5, "LANCZOS": 1})


class StandIn(MetaPathFinder, Loader):
    """Finds torchvision and all that may be in it."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "torchvision" and "timm" in sys.modules:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(StandIn())  # last, so that a torchvision that is installed is found first
