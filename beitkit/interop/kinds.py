"""Kinds of stored networks: class, config, and task-specific tensors."""

from __future__ import annotations

from torch import nn

from beitkit.configs.data import Fit
from beitkit.configs.model import BareBackbone, ClassifierConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig, VQKDConfig
from beitkit.nn.models import Classifier, FeatureNetwork, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.kmeans import KMeansTokenizer
from beitkit.tokenizers.vqkd import VQKD

OUR_NOTE = "beitkit"
"""Key of the config in official-layout files written by beitkit."""

MULTILABEL = "multi_label_classification"
"""transformers' `problem_type` of a classifier that gives each class a yes or no of its own; we write it for timm, too."""

CROP_MODES: dict[Fit, str] = {"crop": "center", "squeeze": "squash", "letterbox": "border"}
"""timm's names of how images come to the network's shape; we write them for transformers, too."""

AnyNetworkConfig = MaskedImageModelConfig | ClassifierConfig | SegmenterConfig | BareBackbone
Network = MaskedImageModel | Classifier | Segmenter | FeatureNetwork

KINDS: dict[str, tuple[type[nn.Module], type]] = {
    "masked": (MaskedImageModel, MaskedImageModelConfig),
    "classify": (Classifier, ClassifierConfig),
    "segment": (Segmenter, SegmenterConfig),
    "backbone": (FeatureNetwork, BareBackbone),
    "dvae": (DiscreteVAE, DVAEConfig),
    "vqkd": (VQKD, VQKDConfig),
    "kmeans": (KMeansTokenizer, KMeansConfig),
}
"""By name in `model.json`: class and config class."""

TASKS: dict[str, str] = {
    "masked": "masked-image modeling",
    "classify": "classification",
    "segment": "semantic segmentation",
    "backbone": "features only",
    "dvae": "tokenizing with a discrete VAE",
    "vqkd": "tokenizing with VQ-KD",
    "kmeans": "tokenizing with k-means of whitened patches",
}
"""Description of each kind."""

MASK_TOKEN, FINAL_NORM, CLS_BRANCH = "mask_token", "norm.", "cls_pt_"
FRESH_IN_BACKBONE = ("backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias")
"""What a backbone lacks that has not been pre-trained on masked patches, by our names."""

OWN_TENSORS: dict[str, tuple[str, ...]] = {
    "masked": (MASK_TOKEN, FINAL_NORM, "lm_head.", CLS_BRANCH),
    "classify": (MASK_TOKEN, FINAL_NORM, "fc_norm.", "head."),
    "segment": (MASK_TOKEN, "fpn1.", "fpn2.", "decode_head.", "auxiliary_head."),
    "backbone": (MASK_TOKEN, FINAL_NORM, "fc_norm.", "head."),
}
"""Prefixes of the official names of task-specific tensors; all others belong to the backbone, which is handed over."""

POOLING_TENSORS = ("fc_norm.", "head.")
"""Those of files without a usable head that a bare backbone has not."""

HEAD_TENSORS: dict[str, tuple[str, ...]] = {
    "masked": ("lm_head.", "cls_pt_lm_head."),
    "classify": ("head.",),
    "segment": ("decode_head.conv_seg.", "auxiliary_head.conv_seg."),
}
"""Tensors that depend on the visual tokens or on the classes, and are freshly initialized for other ones."""
HEAD_REASONS = {"masked": "for other targets", "classify": "for other classes", "segment": "for other classes"}


def numbered(count: int) -> tuple[str, ...]:
    """Default class names: their numbers."""
    return tuple(str(index) for index in range(count))


def kind_of_config(config: object) -> str:
    """The kind of network that a config describes."""
    return next(kind for kind, (_, config_class) in KINDS.items() if type(config) is config_class)
