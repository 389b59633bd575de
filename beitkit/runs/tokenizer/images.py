"""Images of a tokenizer's run: the views that it is made from, and those that it is judged on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import Pair, as_pair, by
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig
from beitkit.contracts import Batch, Tokenizer
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import Reading, evaluation_batches, normalized
from beitkit.data.views.image import EvaluationView, PretrainView
from beitkit.errors import UserError
from beitkit.evaluation.tokens import TokenizerQuality
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.training.own import OwnParts, checked_by
from beitkit.runs.training.pixels import Pixels, decided_pixels

Made = TypeVar("Made", DVAEConfig, KMeansConfig)

EVALUATED_IMAGES = 2000
"""The tokenizer is judged on at most this many images, seen whole and without augmentation."""
UNIT_RANGE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_share=1.0)
"""Tokenizers take images in [0, 1] and normalize them themselves."""


@dataclass(frozen=True)
class RunImages:
    """The images of a run, and how their pixels are read."""

    config: TokenizerRun
    files: ImageList
    size: Pair
    pixels: Pixels

    @classmethod
    def of(cls, config: TokenizerRun, own: OwnParts) -> RunImages:
        """Find the images and look at them.

        Raises:
            UserError: for an image size that is not a multiple of the stride, or images that are not what is asked for.
        """
        size, stride, channels = as_pair(config.image_size), config.tokenizer.stride, config.tokenizer.channels
        if any(side % stride for side in size):
            height, width = (max(1, round(side / stride)) * stride for side in size)
            raise UserError(
                f"`image_size` {by(size)} is not a multiple of the tokenizer's stride {stride}; nearest: {by((height, width))}"
            )
        files = find_images(own.images_or(config.images), config.columns.image)
        pixels = decided_pixels(files, UNIT_RANGE, channels, channels=config.channels, value_range=config.value_range)
        return cls(config, files, size, pixels)

    def inputs(self) -> dict[str, str]:
        """Digests of the inputs, by name."""
        return {"pictures": self.files.digest}

    @property
    def checked(self) -> list[tuple[str, str]]:
        """What is compared of own images when the run is continued."""
        return checked_by({"images": self.files})

    @property
    def lines(self) -> list[str]:
        """What is to be said of the images before anything is learned of them."""
        return [*self.pixels.lines, *(f"{name.lower()} {told}" for name, told in self.checked)]

    def fitted(self, tokenizer: Made) -> Made:
        """The tokenizer's config with the channels and the range of the images."""
        return replace(tokenizer, channels=self.pixels.channels, value_range=self.pixels.preprocessing.value_range)

    def dataset(self) -> ImageDataset:
        """Endless random views, as pre-training draws them."""
        return ImageDataset(
            self.files,
            PretrainView(self.config.view, self.size, None),
            channels=self.pixels.channels,
            value_range=self.pixels.preprocessing.value_range,
            seed=self.config.train.seed,
            smallest=as_pair(self.config.tokenizer.stride),
        )

    def quality(self, tokenizer: Tokenizer, reading: Reading) -> TokenizerQuality:
        """What the tokenizer is judged by: some of the images, evenly spread."""
        evaluation = ImageDataset(
            self.files.evenly_spread(EVALUATED_IMAGES),
            EvaluationView(UNIT_RANGE, self.size),
            channels=self.pixels.channels,
            value_range=self.pixels.preprocessing.value_range,
            kind="evaluate",
            is_repeated=True,
        )
        reading = reading._replace(workers=0)
        return TokenizerQuality(tokenizer, lambda share: evaluation_batches(evaluation, UNIT_RANGE, reading, share))


def in_unit_range(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches with `images` in [0, 1]."""
    return normalized(batches, UNIT_RANGE.mean, UNIT_RANGE.std)
