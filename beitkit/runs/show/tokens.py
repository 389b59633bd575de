"""Masks as drawn, what a network fills in, token maps, and the codebook of a tokenizer."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.configs.data import MaskConfig
from beitkit.data.seeds import derived_seed
from beitkit.data.tokens.key import token_size_of
from beitkit.data.views.masking import masker, predicted_patches
from beitkit.errors import UserError
from beitkit.evaluation.reconstruction import filled_in
from beitkit.nn.models import MaskedImageModel
from beitkit.nn.patches import to_patches
from beitkit.report.heat import over_image, relative, spread, tiled
from beitkit.report.images import CELL, fit, masked_image, to_bytes, token_map
from beitkit.report.overlays import WRONG
from beitkit.runs.show.images import Gallery, ShownImages
from beitkit.runs.show.page import SheetPage
from beitkit.tokenizers.frozen import TokenizerNetwork
from beitkit.train.machine.runtime import Runtime

DRAWN_MASKS = 8
MOST_CODES = 256
"""Codes that are shown, the most frequent first."""
CODES_IN_A_ROW = 16
AROUND = 1
"""A code is decoded amid itself, so many cells to each side, and its own cell is cut out."""
RIGHT_PATCH = (0.12, 0.72, 0.33)
"""Color of a patch that is named right, RGB in [0, 1]."""


class Masking(NamedTuple):
    """How a run hides patches, and which it predicts."""

    config: MaskConfig = MaskConfig()
    recover_all: bool = False


@torch.no_grad()
def show_masks(
    page: SheetPage,
    gallery: Gallery,
    shown: ShownImages,
    model: MaskedImageModel,
    tokenizer: TokenizerNetwork | None,
    masking: Masking,
    seed: int,
    runtime: Runtime,
) -> None:
    """Hidden patches, what the network fills in, and where it is right."""
    backbone = model.config.backbone
    draw = masker(masking.config, backbone.grid)
    masks = draw.together(random.Random(derived_seed(seed, "mask", 0, place)) for place in shown.places)
    predicts = model.config.vocabulary is None or tokenizer is not None
    page.section("What it sees, and what it fills in", _how(model, tokenizer))
    if predicts:
        batch = {"images": gallery.normalized(shown.pixels).to(runtime.device), "mask": masks.to(runtime.device)}
        if tokenizer is not None:
            batch["tokens"] = tokens_of(gallery, shown.places, tokenizer, backbone.grid, runtime).flatten(1).to(runtime.device)
        with runtime.precision():
            columns, _ = filled_in(model, tokenizer, batch, len(masks), recover_all=masking.recover_all)
            at = predicted_patches(batch["mask"], masking.recover_all)
            predicted = model.predict(batch["images"], batch["mask"], at).float()
        columns, caption = dict(columns), ""
        if tokenizer is not None:
            truth = batch["tokens"][at]
            right = predicted.argmax(-1) == truth
            among = (predicted.topk(min(5, predicted.shape[1]), dim=-1).indices == truth.unsqueeze(-1)).any(-1)
            columns["right and wrong"] = _judged(shown.pixels, at.cpu(), right.cpu(), backbone.grid)
            caption = (
                f"Right in green, wrong in red: of {len(right):,} predicted patches {int(right.sum()):,} ({_share(right)}) get "
                f"the tokenizer's token, {_share(among)} among the five most probable. A wrong token can still look right."
            )
        else:
            truth = to_patches(batch["images"], backbone.patch)[at]
            errors = torch.zeros(batch["mask"].shape, device=truth.device)
            errors[at] = (predicted - truth).square().mean(-1)
            maps = errors.cpu().unflatten(1, backbone.grid)
            columns["squared error"] = torch.stack([over_image(*pair) for pair in zip(shown.pixels, relative(maps), strict=True)])
            mean = errors[at].mean()
            caption = f"Squared error of the normalized pixels, yellow the largest of all; {mean:.3f} on average."
        page.sheet("masked", columns, caption)
    else:
        hidden = torch.stack([masked_image(*pair, backbone.grid) for pair in zip(shown.pixels, masks, strict=True)])
        page.sheet("masked", {"original": shown.pixels, "masked": hidden}, "Hidden patches are hatched.")
    drawn = draw.together(random.Random(derived_seed(seed, "mask", epoch, shown.places[0])) for epoch in range(DRAWN_MASKS))
    several = {f"{number + 1}": masked_image(shown.pixels[0], mask, backbone.grid)[None] for number, mask in enumerate(drawn)}
    counts = drawn.sum(1)
    hides = f"{int(counts.min())}" if counts.min() == counts.max() else f"{int(counts.min())} to {int(counts.max())}"
    of = backbone.grid[0] * backbone.grid[1]
    caption = f"Masks as they are drawn ({masking.config.kind}) for one image: each hides {hides} of {of} patches."
    page.sheet("masks", several, caption, cell=96)


@torch.no_grad()
def show_tokens(
    page: SheetPage,
    gallery: Gallery,
    shown: ShownImages,
    tokenizer: TokenizerNetwork,
    grid: tuple[int, int],
    batch_size: int,
    runtime: Runtime,
) -> None:
    """Token maps, what is decoded from them, and the codes that occur in the gallery."""
    page.section("Tokens", "What the tokenizer makes of an image: every patch becomes one of its codes.")
    ids = tokens_of(gallery, shown.places, tokenizer, grid, runtime)
    columns = {"original": shown.pixels}
    columns["token map"] = torch.stack([token_map(one, tokenizer.vocabulary) for one in ids.cpu()])
    with contextlib.suppress(UserError):  # one that cannot decode
        columns["decoded"] = tokenizer.decode(ids).cpu()
    page.sheet("tokens", columns, "Same color, same token, in all images. Decoded is the most that a prediction can look like.")
    used = torch.zeros(tokenizer.vocabulary, dtype=torch.int64)
    images = 0
    for one in _all_tokens(gallery, tokenizer, grid, batch_size, runtime):
        used += torch.bincount(one.flatten().cpu(), minlength=tokenizer.vocabulary)
        images += len(one)
    order = used.argsort(descending=True, stable=True)
    order = order[used[order] > 0][:MOST_CODES]
    page.facts([("Codes in use", f"{int((used > 0).sum()):,} of {tokenizer.vocabulary:,}, in {images:,} images")])
    with contextlib.suppress(UserError):
        decoded = decoded_codes(tokenizer, order, runtime)
        factor = max(1, 24 // decoded.shape[2])
        tiles = to_bytes_of(decoded).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        which = f"{len(order):,} most frequent of the {int((used > 0).sum()):,} codes" if len(order) == MOST_CODES else "codes"
        caption = f"The {which} that occur in {images:,} images, the most frequent first, each decoded amid itself."
        page.sheet("codebook", {"codebook": tiled(tiles, CODES_IN_A_ROW)[None]}, caption, cell=4 * CELL)


def decoded_codes(tokenizer: TokenizerNetwork, codes: Int[Tensor, " n"], runtime: Runtime) -> Float[Tensor, "n c s s"]:
    """The cell of every code, decoded where it is surrounded by itself.

    Raises:
        UserError: a tokenizer that cannot decode.
    """
    side, stride = 2 * AROUND + 1, tokenizer.stride
    cells = codes.to(runtime.device).view(-1, 1, 1).expand(-1, side, side)
    inner = slice(AROUND * stride, (AROUND + 1) * stride)
    return torch.cat([tokenizer.decode(part)[:, :, inner, inner].cpu() for part in cells.split(64)])


def tokens_of(
    gallery: Gallery, places: list[int], tokenizer: TokenizerNetwork, grid: tuple[int, int], runtime: Runtime
) -> Int[Tensor, "r gh gw"]:
    """The tokens of some images, one for each patch."""
    read = [gallery.pixels(place, token_size_of(tokenizer, grid)) for place in places]
    return tokenizer.encode(torch.stack([pixels for pixels in read if pixels is not None]).to(runtime.device))


def to_bytes_of(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Images as they are shown: three channels in [0, 1]."""
    return torch.stack([to_bytes(image) for image in images]) / 255


def _all_tokens(
    gallery: Gallery, tokenizer: TokenizerNetwork, grid: tuple[int, int], batch_size: int, runtime: Runtime
) -> Iterator[Int[Tensor, "b gh gw"]]:
    for _, pixels in gallery.batches(batch_size, token_size_of(tokenizer, grid)):
        yield tokenizer.encode(pixels.to(runtime.device))


def _judged(
    images: Float[Tensor, "r c h w"], at: Bool[Tensor, "r n"], right: Bool[Tensor, " m"], grid: tuple[int, int]
) -> Float[Tensor, "r 3 fit_h fit_w"]:
    """The images with their predicted patches green or red."""
    colors = torch.tensor([WRONG, RIGHT_PATCH])
    patches = torch.zeros(*at.shape, 3)
    patches[at] = colors[right.long()]
    shown = []
    for image, is_predicted, color in zip(images, at.float().unflatten(1, grid), patches.unflatten(1, grid), strict=True):
        base = to_bytes(fit(image)) / 255
        size = (base.shape[1], base.shape[2])
        shown.append(torch.lerp(base, spread(color.permute(2, 0, 1), size), 0.6 * spread(is_predicted, size)))
    return torch.stack(shown)


def _share(right: Bool[Tensor, " m"]) -> str:
    return f"{right.float().mean():.1%}"


def _how(model: MaskedImageModel, tokenizer: TokenizerNetwork | None) -> str:
    if model.config.vocabulary is None:
        return "The network sees the masked image and predicts the pixels of the hidden patches."
    if tokenizer is None:
        return "The network predicts tokens of a tokenizer that is not at hand: give `tokenizer` to see what it fills in."
    return (
        "The network sees the masked image and predicts a token for every hidden patch; the tokenizer's decoder turns tokens "
        "back into pixels. It can be no sharper than what is decoded from the true tokens."
    )
