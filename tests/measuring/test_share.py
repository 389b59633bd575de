"""The share of a step's time that its matrix products would take."""

import pytest

from beitkit.measuring.result import share


def test_a_share_adds_the_time_of_each_precision() -> None:
    # 4 pictures: 4 x 10 at 20 a second take 2 s, 4 x 6 at 8 a second take 3 s; the step took 10 s.
    assert share({"bfloat16": 10, "float32": 6}, 4, {"bfloat16": 20.0, "float32": 8.0}, 10.0) == pytest.approx(0.5)
    assert share({}, 4, {}, 10.0) is None
