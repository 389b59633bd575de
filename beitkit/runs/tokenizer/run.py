"""`beitkit tokenizer`: make a tokenizer of images, so that each patch gets a visual token."""

from __future__ import annotations

from pathlib import Path

from beitkit.runs.tokenizer import dvae, kmeans
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.training.own import NONE, OwnParts


def run(config: TokenizerRun, own: OwnParts = NONE) -> Path:
    """Train or continue a tokenizer; returns its run folder, which `beitkit.load_tokenizer` reads.

    `own` are the objects that the config describes.
    """
    return {"dvae": dvae.run, "kmeans": kmeans.run}[config.kind](config, own)
