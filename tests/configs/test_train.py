"""How processes share the forward passes of a step."""

import pytest

from beitkit.configs.train import LoopConfig
from beitkit.errors import UserError


def test_passes_are_shared_evenly_or_refused_with_the_nearest_number() -> None:
    assert LoopConfig().shared_by(1).accumulate == 1
    assert LoopConfig().shared_by(8).accumulate == 8
    assert LoopConfig(accumulate=16).shared_by(8) == LoopConfig(accumulate=16)
    for passes, nearest in ((1, 8), (9, 8), (13, 16)):
        with pytest.raises(UserError, match=f"`loop.accumulate={passes}` cannot be shared evenly by 8 .*nearest: {nearest} "):
            LoopConfig(accumulate=passes).shared_by(8)
    with pytest.raises(UserError, match="must be at least 1, got 0"):
        LoopConfig(accumulate=0)
