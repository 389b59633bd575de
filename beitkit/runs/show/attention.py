"""Attention of chosen patches: over the image in one block, and in every block and head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.errors import UserError
from beitkit.nn.attention_maps import attention_maps
from beitkit.nn.backbone import Backbone
from beitkit.report.heat import framed, mosaic, over_image, relative
from beitkit.runs.show.images import Gallery, ShownImages
from beitkit.runs.show.page import SheetPage
from beitkit.train.machine.runtime import Runtime

MOSAIC = 360
"""Pixels of the long side of all blocks and heads of one query."""
TAKEN_APART = 3
"""Images whose attention is shown in every block and head."""


def chosen_patches(queries: Sequence[Pair] | None, grid: Pair) -> list[int]:
    """The query patches in raster order from 0, of (row, column) from 1; None takes four, a third from the edges.

    Raises:
        UserError: a patch that is not on the grid.
    """
    if queries is None:
        rows, columns = ((side // 3, side - 1 - side // 3) for side in grid)
        return list(dict.fromkeys(row * grid[1] + column for row in rows for column in columns))
    for row, column in queries:
        if not (1 <= row <= grid[0] and 1 <= column <= grid[1]):
            raise UserError(
                f"`queries` names row {row}, column {column}; the grid has {grid[0]} rows and {grid[1]} columns of patches"
            )
    return [(row - 1) * grid[1] + column - 1 for row, column in queries]


def show_attention(
    page: SheetPage,
    gallery: Gallery,
    shown: ShownImages,
    backbone: Backbone,
    queries: list[int],
    block: int,
    *,
    parts: set[str],
    runtime: Runtime,
) -> None:
    """The sheets "attention" (one block, mean of its heads) and "heads" (all blocks and heads), those that `parts` names."""
    depth, grid = backbone.depth, backbone.config.grid
    blocks = range(depth) if "heads" in parts else [block - 1]
    tokens = torch.tensor([0, *(1 + patch for patch in queries)])
    maps: list[Tensor] = []
    for image in shown.pixels:  # one by one: all blocks of large networks would not fit otherwise
        with runtime.precision():
            found = attention_maps(
                backbone, gallery.normalized(image[None]).to(runtime.device), blocks, tokens.to(runtime.device)
            )
        maps.append(torch.stack([one[0, :, :, 1:].cpu() for one in found]))  # (blocks, k, queries, n)
    every = torch.stack(maps)  # (r, blocks, k, queries, n)
    names = ["class token", *(f"patch {number + 1}" for number in range(len(queries)))]
    if "attention" in parts:
        how = "Where a patch looks to describe itself. A network that knows objects looks at the one the patch is of."
        page.section("Attention", how)
        here = every[:, block - 1 if "heads" in parts else 0].mean(1)  # (r, queries, n)
        columns = {"query patches": _all_framed(shown, grid, queries)}
        for number, name in enumerate(names):
            columns[name] = _over_images(
                shown, here[:, number].unflatten(1, grid), grid, [] if number == 0 else [queries[number - 1]], number - 1
            )
        caption = (
            f"Attention of the framed patches in block {block} of {depth}, mean of its {every.shape[2]} heads: yellow where most "
            "of it goes, relative to the largest of each map. The class token's is what it gathers the image from."
        )
        page.sheet("attention", columns, caption)
    if "heads" in parts:
        how = (
            "The same, taken apart. A head that is yellow at the same distance in every image looks by position, else by content."
        )
        page.section("Blocks and heads", how)
        columns = {"query patches": _all_framed(shown, grid, queries, cell=2 * MOSAIC // 3)[:TAKEN_APART]}
        for number, name in enumerate(names):
            per_image = every[:TAKEN_APART, :, :, number].unflatten(3, grid)  # (r, blocks, k, gh, gw)
            columns[name] = torch.stack([mosaic(one, MOSAIC) for one in per_image])
        caption = "Blocks from the first (top) to the last, heads from left to right; each map relative to its own largest value."
        page.sheet("heads", columns, caption, cell=MOSAIC)


def _all_framed(shown: ShownImages, grid: Pair, queries: list[int], cell: int = 128) -> Float[Tensor, "r 3 h w"]:
    return torch.stack([framed(image, grid, queries, cell) for image in shown.pixels])


def _over_images(
    shown: ShownImages, maps: Float[Tensor, "r gh gw"], grid: Pair, patches: list[int], color: int
) -> Float[Tensor, "r 3 h w"]:
    """Maps over their images, each relative to its own largest value, with a frame around the query."""
    pairs = zip(shown.pixels, maps, strict=True)
    return torch.stack(
        [framed(over_image(image, relative(one)), grid, patches, colors=[color] * len(patches)) for image, one in pairs]
    )
