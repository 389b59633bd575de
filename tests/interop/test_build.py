"""Networks without memory: as those that have it, and made without PyTorch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.interop.build import shell
from beitkit.interop.kinds import AnyNetworkConfig
from beitkit.nn.models import Classifier, MaskedImageModel

BACKBONE = BackboneConfig(width=24, depth=2, heads=4, hidden=48, image_size=(32, 32), patch=(8, 8), final_norm=False)
SMALL = ClassifierConfig(backbone=BACKBONE, classes=("cat", "dog"))
MASKED = MaskedImageModelConfig(
    backbone=BackboneConfig(width=24, depth=2, heads=4, hidden=48, image_size=(32, 32), patch=(8, 8), mask_token=True),
    vocabulary=8,
)


@pytest.mark.parametrize(("config", "kind"), [(SMALL, Classifier), (MASKED, MaskedImageModel)])
def test_a_shell_has_the_names_shapes_and_types_of_the_network(config: AnyNetworkConfig, kind: type) -> None:
    expected, found = kind(config).state_dict(), shell(config).state_dict()
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.is_meta
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)


MAKE = """
import sys
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.interop.build import shell
backbone = BackboneConfig(width=24, depth=2, heads=4, hidden=48, image_size=(32, 32), patch=(8, 8), final_norm=False)
shell(ClassifierConfig(backbone=backbone, classes=("cat", "dog")))
print(*(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
"""


def test_a_shell_needs_no_compiler() -> None:
    """Importing it took longer than all else of a first prediction."""
    assert subprocess.run([sys.executable, "-c", MAKE], check=True, capture_output=True, text=True).stdout.split() == []
