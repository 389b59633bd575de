"""The shape of a network that is described by options."""

import pytest

from beitkit.configs.model import SIZES
from beitkit.configs.parts import NetworkConfig
from beitkit.errors import UserError


@pytest.mark.parametrize("size", SIZES)
def test_a_shape_without_options_is_that_of_the_size(size: str) -> None:
    assert NetworkConfig().shape(size) == SIZES[size]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "heads", "hidden"),
    [({"width": 192}, 6, 768), ({"width": 192, "heads": 3}, 3, 768), ({"depth": 5}, 4, 512), ({"width": 16}, 1, 64)],
)
def test_depth_width_and_heads_take_the_place_of_the_sizes(options: dict[str, int], heads: int, hidden: int) -> None:
    shape = NetworkConfig(**options).shape("micro")  # type: ignore[arg-type]
    assert (shape.heads, shape.hidden) == (heads, hidden)  # micro: width 128, 4 heads of 32, an MLP four times as wide
    assert (shape.width, shape.depth) == (options.get("width", 128), options.get("depth", 3))
    backbone = NetworkConfig(**options).backbone("micro", 4, 32, drop_path=0.0, final_norm=True)  # type: ignore[arg-type]
    assert (backbone.width, backbone.depth, backbone.heads, backbone.hidden) == (shape.width, shape.depth, heads, hidden)


def test_a_width_that_the_heads_do_not_share_is_refused() -> None:
    with pytest.raises(UserError, match="width 200 is not divisible by 6 heads"):
        NetworkConfig(width=200).backbone("micro", 4, 32, drop_path=0.0, final_norm=True)
