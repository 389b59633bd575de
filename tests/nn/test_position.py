"""Index table against published values and brute force; bias gathering."""

from __future__ import annotations

import pytest
import torch

from beitkit.configs.model import Pair
from beitkit.nn.position import SharedPositionBias, gather_bias, relative_position_index, table_rows


@pytest.mark.parametrize(
    ("grid", "rows"),
    [((14, 14), 732), ((24, 24), 2212), ((32, 32), 3972), ((40, 40), 6244), ((16, 16), 964), ((12, 12), 532), ((2, 3), 18)],
)
def test_rows_of_a_table(grid: Pair, rows: int) -> None:
    assert table_rows(grid) == rows


def test_index_of_the_14x14_grid_has_the_official_values() -> None:
    index = relative_position_index((14, 14))
    assert [index[0, 1], index[1, 0], index[0, 0]] == [729, 730, 731]
    assert index[1, 1:5].tolist() == [364, 363, 362, 361]
    assert [index[2, 1], index[1, 15], index[15, 1], index[196, 1], index[1, 196]] == [365, 337, 391, 728, 0]
    assert int(index.sum()) == 14_270_119


def test_index_of_a_2x3_grid_in_full() -> None:
    assert relative_position_index((2, 3)).tolist() == [
        [17, 15, 15, 15, 15, 15, 15],
        [16, 7, 6, 5, 2, 1, 0],
        [16, 8, 7, 6, 3, 2, 1],
        [16, 9, 8, 7, 4, 3, 2],
        [16, 12, 11, 10, 7, 6, 5],
        [16, 13, 12, 11, 8, 7, 6],
        [16, 14, 13, 12, 9, 8, 7],
    ]


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1), (3, 4), (5, 3)])
def test_index_equals_a_loop_over_pairs(grid: Pair) -> None:
    height, width = grid
    index = relative_position_index(grid).tolist()
    for query in range(height * width):
        for key in range(height * width):
            down, right = query // width - key // width, query % width - key % width
            assert index[1 + query][1 + key] == (down + height - 1) * (2 * width - 1) + right + width - 1


def test_every_row_of_a_table_is_used() -> None:
    assert relative_position_index((3, 5)).unique().tolist() == list(range(table_rows((3, 5))))


def test_bias_of_a_head_is_the_table_entry_of_the_pair() -> None:
    index, table = relative_position_index((2, 3)), torch.randn(18, 4)
    bias = gather_bias(table, index)
    assert bias.shape == (1, 4, 7, 7)
    for head, query, key in [(0, 0, 0), (3, 0, 4), (1, 5, 0), (2, 6, 1), (3, 1, 6)]:
        assert bias[0, head, query, key] == table[index[query, key], head]


def test_shared_table_starts_at_zero_and_learns() -> None:
    shared = SharedPositionBias((2, 3), heads=4)
    assert not shared().any()
    shared().square().sum().add(shared().sum()).backward()
    gradient = shared.relative_position_bias_table.grad
    assert gradient is not None
    counts = torch.bincount(relative_position_index((2, 3)).flatten(), minlength=18)
    torch.testing.assert_close(gradient, counts[:, None].expand(-1, 4).float())


def test_index_made_inside_meta_and_inference_blocks_serves_outside() -> None:
    grid = (3, 7)  # a grid of no other test: the table is cached
    with torch.device("meta"), torch.inference_mode():
        SharedPositionBias(grid, heads=2)
    shared = SharedPositionBias(grid, heads=2)
    shared().sum().backward()
    assert shared.relative_position_index.device.type == "cpu"
