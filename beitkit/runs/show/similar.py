"""Features by their principal components as colors, and the nearest images and patches of a gallery."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.inference.networks import Embedding
from beitkit.interop.kinds import Network
from beitkit.report.heat import framed, over_image, scaled_between, spread
from beitkit.report.images import fit
from beitkit.report.table import Column, Table
from beitkit.runs.show.features import Nearest, principal_components
from beitkit.runs.show.images import Gallery, ShownImages
from beitkit.runs.show.page import SheetPage
from beitkit.train.machine.runtime import Runtime

COMPONENTS = 3


@torch.no_grad()
def patch_features(
    model: Network, gallery: Gallery, pixels: Float[Tensor, "b c h w"], block: int | None, runtime: Runtime
) -> Float[Tensor, "b n d"]:
    """The features of every patch, on the CPU, of one block or of the network's output."""
    with runtime.precision():
        return Embedding(block=block, pool="patches")(model, gallery.normalized(pixels).to(runtime.device)).float().cpu()


def show_colors(page: SheetPage, shown: ShownImages, features: Float[Tensor, "r n d"], grid: Pair, source: str) -> None:
    """The sheet "colors": the first three principal components of all patches, as red, green and blue, and one by one."""
    page.section(
        "Features as colors",
        "Patches of the same color have similar features: where parts of objects show up, the network tells them apart.",
    )
    projected, shares = principal_components(features.flatten(0, 1), COMPONENTS)
    scaled = scaled_between(projected).unflatten(0, features.shape[:2]).unflatten(1, grid)  # (r, gh, gw, 3)
    fitted = fit(shown.pixels[0]).shape
    columns = {"original": shown.pixels, "as color": spread(scaled.permute(0, 3, 1, 2), (fitted[1], fitted[2]))}
    for number in range(COMPONENTS):
        pairs = zip(shown.pixels, scaled[..., number], strict=True)
        columns[f"component {number + 1}"] = torch.stack([over_image(image, one, share=0.8) for image, one in pairs])
    explained = ", ".join(f"{share:.0%}" for share in shares.tolist())
    caption = f"Principal components of the patches of these images, {source}; they explain {explained} of the variance."
    page.sheet("colors", columns, caption)


def show_neighbors(
    page: SheetPage,
    gallery: Gallery,
    shown: ShownImages,
    features: Float[Tensor, "r n d"],
    model: Network,
    queries: list[int],
    count: int,
    *,
    block: int | None,
    source: str,
    batch_size: int,
    runtime: Runtime,
) -> None:
    """The sheets "neighbors" of whole images, and "patch-neighbors" of the query patches."""
    own = torch.tensor(shown.places)
    whole = Nearest(features.mean(1), own, count)
    parts = Nearest(features[:, queries].flatten(0, 1), own.repeat_interleave(len(queries)), count)
    looked_at = 0
    for places, pixels in gallery.batches(batch_size):
        batch = patch_features(model, gallery, pixels, block, runtime)
        whole.update(places, batch.mean(1, keepdim=True))
        parts.update(places, batch)
        looked_at += len(places)
    grid = model.backbone.config.grid
    page.section("Neighbors", f"What the features call similar, among {looked_at:,} images: by the cosine, {source}.")
    columns = {"image": shown.pixels}
    for number in range(whole.found):
        columns[f"nearest {number + 1}"] = _read(gallery, whole.image[:, number].tolist())
    page.sheet("neighbors", columns, "The images whose mean patch is most similar, the most similar first.", cell=112)
    rows = [
        [name, *(_named(gallery, *pair) for pair in zip(images, values, strict=True))]
        for name, images, values in zip(
            shown.names, whole.image[:, : whole.found].tolist(), whole.similarity[:, : whole.found].tolist(), strict=True
        )
    ]
    names = [Column(f"nearest {number + 1}", align="left") for number in range(whole.found)]
    page.table(Table(["image", *names], rows, "Their names, and the cosine."))
    framed_queries = [
        framed(image, grid, [patch], 112, [number]) for image in shown.pixels for number, patch in enumerate(queries)
    ]
    columns = {"patch": torch.stack(framed_queries)}
    for number in range(parts.found):
        images = _read(gallery, parts.image[:, number].tolist())
        found = zip(images, parts.patch[:, number].tolist(), range(len(images)), strict=True)
        columns[f"nearest {number + 1}"] = torch.stack(
            [framed(image, grid, [patch], 112, [row % len(queries)]) for image, patch, row in found]
        )
    page.sheet(
        "patch-neighbors", columns, "The framed patch, and the most similar patch of each of the nearest other images.", cell=112
    )


def _read(gallery: Gallery, places: list[int]) -> Float[Tensor, "r c h w"]:
    found = [gallery.pixels(place) for place in places]
    return torch.stack([pixels for pixels in found if pixels is not None])


def _named(gallery: Gallery, place: int, similarity: float) -> str:
    return f"{gallery.name(place)} {similarity:.2f}"
