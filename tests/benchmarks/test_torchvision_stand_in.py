"""torchvision is there only for the import that needs it."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from benchmarks.compare.torchvision_stand_in import torchvision_stand_in


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_torchvision_can_be_imported_inside_and_is_not_found_afterward() -> None:
    with torchvision_stand_in():
        misc = importlib.import_module("torchvision.ops.misc")
        assert isinstance(misc.FrozenBatchNorm2d, type)
    assert importlib.util.find_spec("torchvision") is None
    assert not [name for name in sys.modules if name.startswith("torchvision")]
