"""`beitkit tokenizer`: make a tokenizer of images, so that each patch gets a visual token."""

from __future__ import annotations

from pathlib import Path

from beitkit.runs.tokenizer import dvae, kmeans
from beitkit.runs.tokenizer.config import TokenizerRun


def run(config: TokenizerRun) -> Path:
    """Train or continue a tokenizer; returns its run folder, which `beitkit.load_tokenizer` reads."""
    return {"dvae": dvae.run, "kmeans": kmeans.run}[config.kind](config)
