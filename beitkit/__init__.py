"""beitkit: BEiT pre-training of vision Transformers on one's own pictures, fine-tuning, and what it bought.

Public names are imported on first use, because most of them need torch and the command line's help does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beitkit.inference.networks import Embedding
    from beitkit.inference.predictor import Embedder, Predictor
    from beitkit.interop.load import load, load_tokenizer
    from beitkit.interop.save import save
    from beitkit.nn.backbone import Backbone, Features
    from beitkit.nn.models import Classifier, MaskedImageModel
    from beitkit.nn.segmentation.segmenter import Segmenter
    from beitkit.tokenizers.dvae import DiscreteVAE
    from beitkit.tokenizers.vqkd import VQKD
    from beitkit.verbs import (
        ablate,
        convert,
        demo,
        embed,
        evaluate,
        export,
        finetune,
        index,
        inspect,
        pack,
        plan,
        predict,
        pretrain,
        probe,
        recipes,
        segment,
        show_load,
        tokenize,
        tokenizer,
    )

__version__ = "0.1.0"

_HOME = {
    "Backbone": "nn.backbone",
    "Classifier": "nn.models",
    "DiscreteVAE": "tokenizers.dvae",
    "Embedder": "inference.predictor",
    "Embedding": "inference.networks",
    "Features": "nn.backbone",
    "MaskedImageModel": "nn.models",
    "Predictor": "inference.predictor",
    "Segmenter": "nn.segmenter",
    "VQKD": "tokenizers.vqkd",
    "demo": "verbs",
    "embed": "verbs",
    "index": "verbs",
    "pack": "verbs",
    "evaluate": "verbs",
    "finetune": "verbs",
    "load": "interop.load",
    "load_tokenizer": "interop.load",
    "plan": "verbs",
    "predict": "verbs",
    "pretrain": "verbs",
    "probe": "verbs",
    "recipes": "verbs",
    "segment": "verbs",
    "save": "interop.save",
    "ablate": "verbs",
    "convert": "verbs",
    "inspect": "verbs",
    "show_load": "verbs",
    "export": "verbs",
    "tokenize": "verbs",
    "tokenizer": "verbs",
}

__all__ = [
    "VQKD",
    "Backbone",
    "Classifier",
    "DiscreteVAE",
    "Embedder",
    "Embedding",
    "Features",
    "MaskedImageModel",
    "Predictor",
    "Segmenter",
    "ablate",
    "convert",
    "demo",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "index",
    "inspect",
    "load",
    "load_tokenizer",
    "pack",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "recipes",
    "save",
    "segment",
    "show_load",
    "tokenize",
    "tokenizer",
]


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives."""
    if name not in _HOME:
        raise AttributeError(f"beitkit has no {name!r}")
    return getattr(importlib.import_module(f"beitkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
