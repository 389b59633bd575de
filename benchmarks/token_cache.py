"""Images per second of pre-training batches with their tokens computed and with their tokens from a complete cache.

    python -m benchmarks.token_cache [--images 128] [--rounds 3] [--geometry light|dalle]

Uncached and cached passes alternate, so that what else the machine does hits both. Only the making of batches is timed
(reading, views, tokens), in the main process, without a network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from beitkit import DiscreteVAE, save
from beitkit.configs.data import ViewConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.find import find_images
from beitkit.data.stream import evaluation_stream, stored_views_stream, token_ids
from beitkit.data.tokens.cache import open_cache
from beitkit.data.tokens.key import CacheKey
from beitkit.data.tokens.stage import CachedTokens
from beitkit.data.views.image import PretrainView
from beitkit.interop.load import load_tokenizer
from beitkit.tokenizers.frozen import Encoder

IMAGE, PATCH, BATCH = (224, 224), (16, 16), 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--geometry", choices=("light", "dalle"), default="light")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.images, options.rounds, options.geometry)


def measure(folder: Path, count: int, rounds: int, geometry: str) -> None:
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 255, (15, 20, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{index:05}.jpg")
    files = find_images(folder / "images")
    config = DVAEConfig(geometry="dalle", stride=8, reconstruction="logit_laplace") if geometry == "dalle" else DVAEConfig()
    save(DiscreteVAE(config), folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    encode = Encoder.laid_out(tokenizer)
    key = CacheKey.of(files, tokenizer, ViewConfig(), IMAGE, PATCH, seed=0, views=1)
    cached = CachedTokens(
        open_cache(folder / "cache", key, files, is_writable=True), lambda images: token_ids(images, encode, key.grid), BATCH
    )

    def dataset(token_size: tuple[int, int] | None) -> ImageDataset:
        return ImageDataset(files, PretrainView(ViewConfig(), IMAGE, token_size), kind="evaluate", smallest=PATCH, views=1)

    with_view, without = dataset(key.token_size), dataset(None)
    for _ in cached.tokenized(stored_views_stream(with_view, BATCH, lambda index, view: True, range(count))):
        pass
    print(f"{geometry} geometry, {count} images of 400x300, batch {BATCH}, {torch.get_num_threads()} threads")
    for _ in range(rounds):
        start = time.perf_counter()
        for batch in evaluation_stream(with_view, BATCH):
            token_ids(batch["token_images"], encode, key.grid)
        between = time.perf_counter()
        for _ in cached.tokenized(evaluation_stream(without, BATCH)):
            pass
        end = time.perf_counter()
        print(f"uncached {count / (between - start):7.1f} images/s    cached {count / (end - between):7.1f} images/s")


if __name__ == "__main__":
    main()
