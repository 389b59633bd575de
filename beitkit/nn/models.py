"""Networks: a backbone with the head of its task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import overload

import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.model import BareBackbone, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.contracts import ImageInput, LoadReport, Reader
from beitkit.errors import UserError
from beitkit.nn.averaged import averaged_logits, check_views
from beitkit.nn.backbone import INIT_STD, Backbone, Features, truncated_normal_
from beitkit.nn.cls_branch import ClsBranch
from beitkit.nn.patches import Positions, take_patches
from beitkit.nn.prediction import Prediction, check_outputs, class_probabilities

BACKBONE_PREFIX = "backbone."


class MaskedImageModel(nn.Module):
    """Predicts the visual tokens of masked patches (arXiv 2106.08254, equation 2), or their pixels (its ablation)."""

    load_report: LoadReport | None = None
    """Report on every tensor, if loaded from a checkpoint."""

    def __init__(self, config: MaskedImageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.lm_head = nn.Linear(config.backbone.width, config.outputs)
        truncated_normal_(self.lm_head.weight, INIT_STD)
        nn.init.zeros_(self.lm_head.bias)
        self.cls_branch = None if config.cls_branch is None else ClsBranch(config)

    def reset_head(self) -> None:
        """Initialize the head, and that of the class-token branch if it has one of its own."""
        own = None if self.cls_branch is None else self.cls_branch.cls_pt_lm_head
        for head in (self.lm_head, own):
            if head is not None:
                truncated_normal_(head.weight, INIT_STD)
                nn.init.zeros_(head.bias)

    def forward(self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "m v"]:
        """Logits over the vocabulary at the masked positions only, in row-major order over batch, then position.

        Of a network without a vocabulary, the normalized pixels of these patches (see `nn.patches`).
        """
        return self.predict(images, mask, mask)

    def predict(self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"], at: Positions) -> Float[Tensor, "m v"]:
        """As `forward`, at any positions, masked or not."""
        return self.lm_head(take_patches(self.backbone(images, mask).patches, at))

    def both_logits(
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"], at: Positions
    ) -> tuple[Float[Tensor, "m v"], Float[Tensor, "m v"]]:
        """Logits as from `predict`, and those of the class-token branch; BEiT v2 adds their two cross-entropies.

        Raises:
            UserError: if the network was built without a branch.
        """
        branch, config = self.cls_branch, self.config.cls_branch
        if branch is None or config is None:
            raise UserError("this network has no class-token branch; build it with cls_branch=ClsBranchConfig(...)")
        x, bias = self.backbone.embed(images, mask)
        early = self.backbone.run_blocks(x, bias, range(config.early_layer))
        late = self.backbone.run_blocks(early, bias, range(config.early_layer, self.backbone.depth))
        aggregated = branch(late, early, bias)
        own_norm, own_head = branch.cls_pt_norm, branch.cls_pt_lm_head
        patches = (self.backbone.finish(aggregated) if own_norm is None else self.backbone.split(own_norm(aggregated))).patches
        head = self.lm_head if own_head is None else own_head
        return self.lm_head(take_patches(self.backbone.finish(late).patches, at)), head(take_patches(patches, at))

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates; the head is above the last block."""
        return layer_of(self.backbone, name)

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is free of weight decay by name."""
        return no_decay(self.backbone, name)


class Classifier(nn.Module):
    """Image classifier (arXiv 2106.08254, section 2.6; mean pooling as in the released code)."""

    load_report: LoadReport | None = None
    """Report on every tensor, if loaded from a checkpoint."""
    reader: Reader | None = None
    """Prepares images for `predict`; `beitkit.load` sets it."""

    def __init__(self, config: ClassifierConfig, *, head_scale: float = 0.001) -> None:
        """A fresh classifier; its head starts `head_scale` times as large as the table in `Backbone` says (official code)."""
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        width = config.backbone.width
        self.fc_norm = nn.LayerNorm(width, eps=config.backbone.norm_eps) if config.pooling != "cls" else None
        self.head = nn.Linear(config.head_width, len(config.classes))
        self.reset_head(head_scale)

    def reset_head(self, head_scale: float = 0.001) -> None:
        """Initialize the head."""
        truncated_normal_(self.head.weight, 2.0)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Pooled features, the input of the head: as many as the network is wide, or with grid pooling that for every cell."""
        features = self.backbone(images)
        if self.fc_norm is None:
            return features.cls
        if self.config.pooling == "mean":
            return self.fc_norm(features.patches.mean(1))
        # Divided by the cells, a head learns as fast as one that sees their mean: n inputs of 1 / n instead of one.
        cells = grid_means(features, self.config.pool_cells)
        return self.fc_norm(cells).flatten(1) / cells.shape[1]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits, one per class."""
        return self.head(self.features(images))

    def probabilities(self, logits: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
        """Softmax of the logits over the network's temperature, in float32; sigmoid if multi-label."""
        return class_probabilities(logits, self.config)

    @overload
    def predict(self, images: ImageInput, *, top: int = 5, inference: InferenceConfig = ...) -> Prediction: ...

    @overload
    def predict(
        self, images: list[ImageInput] | tuple[ImageInput, ...], *, top: int = 5, inference: InferenceConfig = ...
    ) -> list[Prediction]: ...

    @torch.no_grad()
    def predict(
        self,
        images: ImageInput | list[ImageInput] | tuple[ImageInput, ...],
        *,
        top: int = 5,
        inference: InferenceConfig = InferenceConfig(),
    ) -> Prediction | list[Prediction]:
        """Predict the classes of one image or of a batch.

        Args:
            images: a path, a Pillow image, or an array or tensor, uint8 or float in [0, 1], of shape (h, w), (h, w, c) or
                (c, h, w); or a list of these, which is one batch.
            top: how many classes `best` has.
            inference: scales, flip and shift of the views whose logits are averaged.

        Raises:
            UserError: an image that cannot be read, a network without a reader, one that is in training mode, or views that it
                does not have.
        """
        if self.reader is None:
            raise UserError("this network has no reader of images; load it with beitkit.load, or set its reader")
        if self.training:
            raise UserError("this network is in training mode, where predictions are drawn at random; call eval() first")
        if top < 1:
            raise UserError(f"top must be at least 1, got {top}")
        is_one = isinstance(images, str | bytes | os.PathLike | Image.Image | ndarray | Tensor)
        check_views(inference, self.config.backbone.image_size)
        several: Sequence[ImageInput] = [images] if is_one else images
        if not several:
            return []
        batch = self.reader(several).to(self.head.weight.device)
        probabilities = self.probabilities(averaged_logits(self, batch, inference)).cpu()
        check_outputs(probabilities)
        predictions = [Prediction.of(self.config.classes, row, top) for row in probabilities]
        return predictions[0] if is_one else predictions

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates; the head is above the last block."""
        return layer_of(self.backbone, name)

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is free of weight decay by name."""
        return no_decay(self.backbone, name)


class FeatureNetwork(nn.Module):
    """A backbone without a head, as MAE, DINO and others are released: it gives features, and starts other tasks."""

    load_report: LoadReport | None = None
    """Report on every tensor, if loaded from a checkpoint."""

    def __init__(self, config: BareBackbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        """Class token and patches."""
        return self.backbone(images)


def grid_means(features: Features, cells: int) -> Float[Tensor, "b m d"]:
    """Means of the patches in each of m = cells x cells equal parts of the image, in raster order.

    Where the patches cannot be shared out evenly, neighboring parts overlap (as in adaptive average pooling).
    """
    patches = features.patches.transpose(1, 2).unflatten(2, features.grid)
    return F.adaptive_avg_pool2d(patches, cells).flatten(2).transpose(1, 2)


def layer_of(backbone: Backbone, name: str) -> int:
    """Layer of a parameter of a network whose `backbone` this is, by its full name: `backbone.blocks.0.norm1.weight` is 1."""
    is_below_head = name.startswith(BACKBONE_PREFIX)
    return backbone.layer_of(name.removeprefix(BACKBONE_PREFIX)) if is_below_head else backbone.depth + 1


def no_decay(backbone: Backbone, name: str) -> bool:
    """Whether a parameter of a network whose `backbone` this is, by its full name, is free of weight decay."""
    return name.startswith(BACKBONE_PREFIX) and backbone.no_decay(name.removeprefix(BACKBONE_PREFIX))
