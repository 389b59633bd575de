"""What a classifier names and which patches speak for it; what a segmenter sees."""

from __future__ import annotations

import torch
from torch import Tensor

from beitkit.configs.segmentation import InferenceConfig
from beitkit.contracts import in_unit_range
from beitkit.errors import UserError
from beitkit.nn.models import Classifier
from beitkit.nn.segmentation.label_map import predict_scene
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.report.heat import over_image, relative
from beitkit.report.images import fit, stacked, to_bytes
from beitkit.report.overlays import colored, overlay
from beitkit.report.table import Column, Table, percent
from beitkit.runs.show.grad_cam import explained_block, grad_cam
from beitkit.runs.show.images import Gallery, ShownImages
from beitkit.runs.show.page import SheetPage
from beitkit.terminal import one_line
from beitkit.train.machine.runtime import Runtime

GUESSES = 3
SCENE = 256
"""Pixels of the long side of a scene on its sheet."""


def show_classes(
    page: SheetPage,
    gallery: Gallery,
    shown: ShownImages,
    model: Classifier,
    target: str | None,
    block: int | None,
    runtime: Runtime,
) -> None:
    """The sheet "classes": Grad-CAM of the class asked for, or of each image's two most probable ones."""
    classes, deepest = model.config.classes, explained_block(model)
    if target is not None and target not in classes:
        raise UserError(f"`target` {target!r} is not one of the {len(classes)} classes: {', '.join(classes[:10])}")
    at = min(block or deepest, deepest)
    images = gallery.normalized(shown.pixels).to(runtime.device)
    with runtime.precision():
        maps, logits = grad_cam(model, images, None, at)
        order = logits.argsort(dim=1, descending=True, stable=True)
        explained = {"for the first": order[:, 0]}
        if target is not None:
            explained = {f"for {target}": torch.full_like(order[:, 0], classes.index(target))}
        elif len(classes) > 1:
            explained["for the second"] = order[:, 1]
        columns: dict[str, Tensor] = {"original": shown.pixels}
        for name, chosen in explained.items():
            maps, _ = grad_cam(model, images, chosen, at)
            pairs = zip(shown.pixels, maps.cpu(), strict=True)
            columns[name] = torch.stack([over_image(image, relative(one)) for image, one in pairs])
    page.section("What it names, and why", "Grad-CAM: the patches that speak most for a class are yellow.")
    page.sheet("classes", columns, f"Of the patches after block {at}; each map relative to its own largest value.")
    probabilities = model.probabilities(logits).cpu()
    best = order[:, : min(GUESSES, len(classes))].cpu()
    rows = [
        [name, *(one_line(f"{classes[index]} {percent(row[index].item())}") for index in indices.tolist())]
        for name, row, indices in zip(shown.names, probabilities, best, strict=True)
    ]
    names = [Column(name, align="left") for name in ("first", "second", "third")[: best.shape[1]]]
    page.table(Table(["image", *names], rows, "The most probable classes."))


@torch.no_grad()
def show_scenes(
    page: SheetPage, gallery: Gallery, shown: ShownImages, model: Segmenter, inference: InferenceConfig, runtime: Runtime
) -> None:
    """The sheet "scenes": images at their own shape, under the colors of their classes, and these alone."""
    palette = model.config.colors
    originals, mixed, alone = list[Tensor](), list[Tensor](), list[Tensor]()
    seen = torch.zeros(len(model.config.classes))
    for place in shown.places:
        image = gallery.whole(place)
        assert image is not None
        prediction = predict_scene(model, image, inference.over(model.config.inference), runtime.precision)
        seen += prediction.area / len(shown.places)
        for column, pixels in (
            (originals, in_unit_range(image)),
            (mixed, overlay(image, prediction.label_map, palette)),
            (alone, colored(prediction.label_map, palette)),
        ):
            column.append(to_bytes(fit(pixels, SCENE)) / 255)
    page.section("What it sees where")
    occurring = [index for index in seen.argsort(descending=True, stable=True).tolist() if seen[index] > 0]
    page.legend({f"{model.config.classes[index]} {percent(seen[index].item())}": palette[index] for index in occurring})
    columns = {"original": stacked(originals), "classes over it": stacked(mixed), "classes": stacked(alone)}
    page.sheet("scenes", columns, "In the colors of the legend, which says what share of the pixels each class has.", cell=SCENE)
