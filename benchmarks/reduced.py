"""How far evaluation views of JPEGs decoded at less than their size are from those of whole ones, for decision 017.

    python -m benchmarks.reduced PHOTOS [--images 100] [--model CHECKPOINT]

PHOTOS is a folder of photographs, shown as they are to networks of 40, 48 and 64 pixels (so that all the detail of a camera's
pixels is there to differ), and enlarged to 4000x3000 to one of 224. The rows are how many times the size that is resized to a
reduced JPEG still has to have. Stated are the share of images that are reduced, differences of pixels in levels of 255, of pooled
features and logits of a small network (random weights, or `--model`) in units of their spread over the images, and how often the
best class is another. The last row is what bfloat16 in place of float32 does to the network's outputs, of the same pixels.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

import beitkit
from beitkit.configs.data import Preprocessing
from beitkit.data.decoding.decode import Encoded, StoredImage, image_to_crop
from beitkit.data.sources.find import find_images
from beitkit.data.stream import normalized
from beitkit.data.views import image as views
from beitkit.data.views.image import EvaluationView
from beitkit.nn.models import Classifier
from benchmarks.compare.workload import Workload

FINENESS = (1, 2, 2.9, 4)
WHOLE = float("inf")
LARGE, LARGE_SIDE = (4000, 3000), 224
SIDES = (40, 48, 64)
BATCH = 20


class Outputs(NamedTuple):
    """What a network makes of images, in float32."""

    features: Tensor
    logits: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    found = find_images(options.photos).evenly_spread(options.images)
    photos = [found.path(index) for index in range(len(found))]
    heads = "shown at | times its size | reduced | pixels, mean | 99.9% | most | features, mean | most | logits, mean | most"
    print(f"| {heads} | other class |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for side in SIDES:
        compare(f"{side}, of 500", photos, side, options.model)
    compare(f"{LARGE_SIDE}, of {LARGE[0]}", [enlarged(path) for path in photos], LARGE_SIDE, options.model)


def compare(name: str, photos: Sequence[Path | Encoded], side: int, model: Path | None) -> None:
    """Print the rows of a size."""
    network = (
        Workload(size="small", patch=8 if side < LARGE_SIDE else 16, image_size=side, batch_size=1).classifier()
        if model is None
        else beitkit.load(model)
    )
    assert isinstance(network, Classifier)
    network.eval()
    preprocessing = network.config.preprocessing
    view = EvaluationView(preprocessing, (side, side) if model is None else network.config.backbone.image_size)
    whole, _ = shown(photos, view, WHOLE)
    expected = outputs(network, whole, preprocessing)
    for fineness in FINENESS:
        pixels, reduced = shown(photos, view, fineness)
        off = (pixels.int() - whole.int()).abs().float().flatten()
        levels = f"{off.mean():.3f} | {torch.quantile(off[:: max(1, len(off) // 2**23)], 0.999):.0f} | {off.max():.0f}"
        print(
            f"| {name} | {fineness} | {reduced:.0%} | {levels} | {told(outputs(network, pixels, preprocessing), expected)} |",
            flush=True,
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = outputs(network, whole, preprocessing)
    print(f"| {name} | whole, in bfloat16 | 0% | 0 | 0 | 0 | {told(rounded, expected)} |", flush=True)


def shown(photos: Sequence[Path | Encoded], view: EvaluationView, fineness: float) -> tuple[Tensor, float]:
    """The views, and the share of images that were reduced."""
    pixels, reduced = [], 0
    with mock.patch.object(views, "FINENESS", fineness):
        for photo in photos:
            image = image_to_crop(photo, 3)
            assert isinstance(image, StoredImage)
            pixels.append(view(image, random.Random(0))["images"])
            reduced += max(image.kept) > 1
    return torch.stack(pixels), reduced / len(photos)


@torch.no_grad()
def outputs(network: Classifier, pixels: Tensor, preprocessing: Preprocessing) -> Outputs:
    """Pooled features and logits."""
    batches = [{"images": part} for part in pixels.split(BATCH)]
    features = [network.features(batch["images"]) for batch in normalized(batches, preprocessing.mean, preprocessing.std)]
    together = torch.cat(features)
    return Outputs(together.float(), network.head(together).float())


def told(found: Outputs, expected: Outputs) -> str:
    """Mean and largest differences in units of the spread over images, and the share of other best classes."""
    cells = []
    for one, other in zip(found, expected, strict=True):
        off = ((one - other) / other.std(0).mean()).abs()
        cells.append(f"{off.mean():.4f} | {off.max():.3f}")
    changed = (found.logits.argmax(1) != expected.logits.argmax(1)).float().mean()
    return f"{' | '.join(cells)} | {changed:.1%}"


def enlarged(path: Path) -> Encoded:
    """A photograph at 12 megapixels, as a file in memory."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return Encoded(path, buffer.getvalue())


if __name__ == "__main__":
    main()
