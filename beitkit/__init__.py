"""beitkit: BEiT pre-training of vision Transformers on your own images, fine-tuning, and measuring what pre-training adds.

Public names are imported on first use, because most of them need torch and the command line's help does not. Every verb of the
command line is a function of the same name (`beitkit.verbs`).
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from beitkit.version import __version__ as __version__

if TYPE_CHECKING:
    from beitkit.errors import UserError
    from beitkit.inference.networks import Embedding
    from beitkit.inference.predictor import Embedder, Predictor
    from beitkit.interop.load import load, load_tokenizer
    from beitkit.interop.save import save
    from beitkit.nn.backbone import Backbone, Features
    from beitkit.nn.models import Classifier, FeatureNetwork, MaskedImageModel
    from beitkit.nn.segmentation.segmenter import Segmenter
    from beitkit.tokenizers.dvae import DiscreteVAE
    from beitkit.tokenizers.kmeans import KMeansTokenizer
    from beitkit.tokenizers.vqkd import VQKD

_HOME = {
    "Backbone": "nn.backbone",
    "Classifier": "nn.models",
    "DiscreteVAE": "tokenizers.dvae",
    "Embedder": "inference.predictor",
    "Embedding": "inference.networks",
    "FeatureNetwork": "nn.models",
    "Features": "nn.backbone",
    "KMeansTokenizer": "tokenizers.kmeans",
    "MaskedImageModel": "nn.models",
    "Predictor": "inference.predictor",
    "Segmenter": "nn.segmentation.segmenter",
    "UserError": "errors",
    "VQKD": "tokenizers.vqkd",
    "load": "interop.load",
    "load_tokenizer": "interop.load",
    "save": "interop.save",
}
"""Public names besides the verbs, and the modules that they live in."""

__all__ = [
    "VQKD",
    "Backbone",
    "Classifier",
    "DiscreteVAE",
    "Embedder",
    "Embedding",
    "FeatureNetwork",
    "Features",
    "KMeansTokenizer",
    "MaskedImageModel",
    "Predictor",
    "Segmenter",
    "UserError",
    "load",
    "load_tokenizer",
    "save",
]


def __getattr__(name: str) -> Any:  # itself not decorated: type checkers then know that the verbs are there
    """Import a public name from where it lives."""
    return _public(name)


@functools.cache
def _public(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"beitkit.{_HOME[name]}"), name)
    from beitkit.verbs import VERBS, function_of

    verb = name.replace("_", "-")
    if verb not in VERBS or "-" in name:
        raise AttributeError(f"beitkit has no {name!r}")
    return function_of(verb)


def __dir__() -> list[str]:
    from beitkit.verbs import VERBS

    return sorted([*_HOME, *(verb.replace("-", "_") for verb in VERBS)])
