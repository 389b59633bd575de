"""What a pre-training run works with: pictures, masks, targets and network, checked against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from beitkit.configs.model import BackboneConfig, ClsBranchConfig, MaskedImageModelConfig
from beitkit.configs.verbs import PretrainRun
from beitkit.contracts import Batch
from beitkit.data.files import PictureList, find_pictures
from beitkit.data.masking import Masker, masker
from beitkit.data.stream import PictureDataset, normalized, to_device, tokenized
from beitkit.data.views import PretrainView
from beitkit.errors import UserError
from beitkit.interop.kinds import TokenizerNetwork
from beitkit.interop.load import load_tokenizer
from beitkit.nn.models import MaskedImageModel
from beitkit.objectives.masked import MaskedPixels, MaskedTokens

JUDGED_PICTURES = 512
"""Evaluations, and the choice of the best checkpoint, look at this many pictures, always in the same views."""


@dataclass(frozen=True)
class Setup:
    """What a run works with, checked against each other before anything is written."""

    config: PretrainRun
    tokenizer: TokenizerNetwork | None
    """None where pixels are predicted."""
    model: MaskedImageModelConfig
    draw_mask: Masker
    files: PictureList

    @classmethod
    def of(cls, config: PretrainRun) -> Setup:
        """Read the tokenizer, find the pictures, and refuse what cannot work together."""
        tokenizer = _tokenizer(config)
        model = model_of(config, tokenizer)
        return cls(config, tokenizer, model, masker(config.mask, model.backbone.grid), find_pictures(config.images))

    @property
    def recover_all(self) -> bool:
        """Whether visible patches are predicted as well."""
        return self.config.recover == "all"

    def inputs(self) -> dict[str, str]:
        """Digests of what the run reads, by what a person calls it."""
        tokenizer = {} if self.tokenizer is None else {"tokenizer": self.tokenizer.fingerprint}
        return {"pictures": self.files.digest} | tokenizer

    def objective(self) -> MaskedTokens | MaskedPixels:
        """The objective over a fresh network."""
        kind = MaskedPixels if self.tokenizer is None else MaskedTokens
        return kind(MaskedImageModel(self.model), recover_all=self.recover_all)

    def dataset(self) -> PictureDataset:
        """Pictures with their masks; where there is a tokenizer in two views, the second with one token per patch."""
        grid, token_size = self.model.backbone.grid, None
        if self.tokenizer is not None:
            token_size = grid[0] * self.tokenizer.stride, grid[1] * self.tokenizer.stride
        return PictureDataset(
            self.files,
            PretrainView(self.config.view, self.model.backbone.image_size, token_size),
            masker=self.draw_mask,
            channels=self.model.backbone.channels,
            seed=self.config.train.seed,
            smallest=self.model.backbone.patch,
        )

    def fixed(self) -> PictureDataset:
        """Some of the pictures, evenly spread, each always in the same view and under the same mask."""
        count = min(JUDGED_PICTURES, len(self.files))
        chosen = self.files.subset([index * len(self.files) // count for index in range(count)])
        dataset = self.dataset()
        return PictureDataset(
            chosen,
            dataset.view,
            masker=self.draw_mask,
            channels=dataset.channels,
            seed=self.config.train.seed,
            kind="evaluate",
            smallest=dataset.smallest,
        )

    def prepared(self, stream: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
        """Batches ready for the objective."""
        statistics = self.model.preprocessing
        stream = normalized(to_device(stream, device), statistics.mean, statistics.std)
        return stream if self.tokenizer is None else tokenized(stream, self.tokenizer, self.model.backbone.grid)


def model_of(config: PretrainRun, tokenizer: TokenizerNetwork | None) -> MaskedImageModelConfig:
    """The network a run asks for; its channels and vocabulary are the tokenizer's, where there is one.

    Raises:
        UserError: for a picture size that is not a whole number of patches, or other channels than the tokenizer's.
    """
    channels = config.channels or (3 if tokenizer is None else tokenizer.channels)
    if tokenizer is not None and channels != tokenizer.channels:
        raise UserError(f"--channels {channels} does not fit a tokenizer of {tokenizer.channels}; leave --channels out")
    backbone = BackboneConfig.named(
        f"{config.size}/{config.patch}",
        image_size=config.image_size,
        channels=channels,
        absolute_positions=config.network.positions == "none",
        relative_positions=config.network.positions,
        layer_scale="default" if config.network.layer_scale is None else config.network.layer_scale or None,
        drop_path=config.network.drop_path,
        mask_token=True,
        pretrain_init=True,
    )
    if min(backbone.grid) < 2:
        raise UserError(
            f"--image-size {config.image_size} holds {backbone.grid[0]}x{backbone.grid[1]} patches of --patch {config.patch}; "
            "at least 2x2 are needed"
        )
    if config.cls_branch is not None and config.cls_branch > backbone.depth:
        raise UserError(
            f"--cls-branch must be at most the {backbone.depth} blocks of --size {config.size}, got {config.cls_branch}"
        )
    return MaskedImageModelConfig(
        backbone=backbone,
        vocabulary=None if tokenizer is None else tokenizer.vocabulary,
        cls_branch=None if config.cls_branch is None else ClsBranchConfig(early_layer=config.cls_branch),
        preprocessing=config.network.preprocessing,
        tokenizer="" if tokenizer is None else tokenizer.fingerprint,
    )


def _tokenizer(config: PretrainRun) -> TokenizerNetwork | None:
    if config.target == "pixels":
        return None
    if config.tokenizer is None:
        raise UserError(
            "this is required: --tokenizer (a run folder of beitkit tokenizer, or a file); only --target pixels does without"
        )
    return load_tokenizer(config.tokenizer)
