"""Setup of a pre-training run: images, masking, targets and network, checked against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch

from beitkit.configs.data import ViewConfig
from beitkit.configs.model import BackboneConfig, ClsBranchConfig, ImageSize, MaskedImageModelConfig, as_pair, by
from beitkit.configs.parts import DEFAULT_PATCH
from beitkit.configs.train import TrainConfig, resolved
from beitkit.contracts import Batch, PatchTokenizer
from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding.reading import is_deep
from beitkit.data.own.augmentation import OwnAugmentation
from beitkit.data.own.encode import described
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import normalized, tokenized
from beitkit.data.tokens.cache import read_key
from beitkit.data.tokens.key import CacheKey, token_size_of
from beitkit.data.tokens.stage import CachedTokens
from beitkit.data.transfer import to_device
from beitkit.data.views.image import PretrainView
from beitkit.data.views.masking import Masker, masker, with_positions
from beitkit.errors import UserError, refuse_given
from beitkit.evaluation.masked import MaskedAccuracy, token_usage
from beitkit.interop.load import load_tokenizer
from beitkit.nn.models import MaskedImageModel
from beitkit.objectives.masked import MaskedPixels, MaskedTokens
from beitkit.runs.pretrain.choose import PLAIN_IMAGE_SIZE, choose
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.init import Origin
from beitkit.runs.training.own import NONE, OwnParts, checked_by
from beitkit.runs.training.pixels import Pixels, decided_pixels
from beitkit.tokenizers.frozen import Encoder, TokenizerNetwork, token_encoder
from beitkit.tokenizers.own import OwnTokenizer
from beitkit.train.machine.runtime import Runtime

EVALUATED_IMAGES = 512
"""Images of an evaluation, always in the same views."""


@dataclass(frozen=True)
class Setup:
    """The parts of a run, checked against each other before anything is written."""

    config: PretrainRun
    """With nothing left open."""
    origin: Origin | None
    """What `init` names."""
    tokenizer: TokenizerNetwork | OwnTokenizer | None
    """None where pixels are predicted."""
    model: MaskedImageModelConfig
    draw_mask: Masker
    files: ImageList
    views: int | None
    """Stored views per image; None draws a new view every epoch."""
    notes: tuple[str, ...] = ()
    """What is to be said of the images and of what was chosen, before anything is trained."""
    augmentation: OwnAugmentation | None = None
    """The caller's own change of the training images."""

    @classmethod
    def of(cls, config: PretrainRun, own: OwnParts = NONE, device: torch.device | None = None) -> Setup:
        """Load the tokenizer, find the images, and check that they fit together.

        `own` are the objects that the config describes; a tokenizer among them is tried on `device`.
        """
        _check_own(config, own)
        loaded, origin = None if own.tokenizer is not None else _tokenizer(config), Origin.read(config)
        shown = None if own.images is None else _images_of_steps(config)
        files = find_images(own.images_or(config.images, shown), config.columns.image)
        config, reasons = choose(config, None if origin is None else origin.facts(len(files)))
        pixels = _pixels(config, loaded, origin, files)
        tokenizer = loaded if own.tokenizer is None else _tried(config, own.tokenizer, pixels, device or torch.device("cpu"))
        model = model_of(replace(config, channels=pixels.channels), tokenizer, origin)
        model = replace(model, preprocessing=pixels.preprocessing)
        _check_range(tokenizer, pixels)
        views = config.views if config.tokens is None or config.views is not None else read_key(config.tokens).views
        draw_mask = masker(config.mask, model.backbone.grid)
        deep = is_deep(model.backbone.channels, model.preprocessing.value_range)
        augmentation = own.augmentation_of(config.augmentation, model.backbone.channels, is_deep=deep)
        notes = (*pixels.lines, *reasons)
        return cls(config, origin, tokenizer, model, draw_mask, files, views, notes, augmentation)

    @property
    def recover_all(self) -> bool:
        """Whether visible patches are predicted as well."""
        return self.config.recover == "all"

    def inputs(self) -> dict[str, str]:
        """Digests of the inputs, by name."""
        tokenizer = {} if self.tokenizer is None else {"tokenizer": self.tokenizer.fingerprint}
        stored = {} if self.views is None else {"stored views": str(self.views)}
        init = {} if self.origin is None else {"init": self.origin.digest()}
        own = {} if self.augmentation is None else {"augmentation": self.augmentation.fingerprint[0]}
        return {"pictures": self.files.digest} | tokenizer | stored | init | own

    @property
    def checked(self) -> list[tuple[str, str]]:
        """What is compared of own parts when the run is continued."""
        return checked_by({"images": self.files}, self.tokenizer, self.augmentation)

    def initialize(self) -> MaskedImageModel:
        """The network with its first weights: fresh ones, or those of `init`."""
        if self.origin is None:
            return MaskedImageModel(self.model)
        return self.origin.load(self.config, self.model, self.tokenizer)

    def objective(self, model: MaskedImageModel) -> MaskedTokens | MaskedPixels:
        """The objective of the network."""
        kind = MaskedPixels if self.tokenizer is None else MaskedTokens
        return kind(model, recover_all=self.recover_all)

    def cache_key(self, views: int) -> CacheKey:
        """Key of the tokens of this many stored views."""
        assert self.tokenizer is not None
        backbone = self.model.backbone
        return CacheKey.of(
            self.files, self.tokenizer, self.config.view, backbone.image_size, backbone.patch, self.config.train.seed, views
        )

    def dataset(self, *, shows_tokenizer: bool = True, is_evaluated: bool = False) -> ImageDataset:
        """Images with their masks; where there is a tokenizer in two views, the second with one token per patch.

        Without `shows_tokenizer` the second view is left out. To be evaluated are some of the images, evenly spread, each always
        in the same view and under the same mask.
        """
        backbone = self.model.backbone
        return ImageDataset(
            self.files.evenly_spread(EVALUATED_IMAGES) if is_evaluated else self.files,
            self.view(shows_tokenizer=shows_tokenizer),
            masker=self.draw_mask,
            channels=backbone.channels,
            value_range=self.model.preprocessing.value_range,
            seed=self.config.train.seed,
            kind="evaluate" if is_evaluated else "train",
            smallest=backbone.patch,
            views=None if is_evaluated else self.views,
            is_repeated=is_evaluated,
            augmentation=None if is_evaluated else self.augmentation,
        )

    def view(self, *, shows_tokenizer: bool) -> PretrainView:
        """What is shown to the network and, where there is one and it is to be shown, to the tokenizer."""
        backbone, token_size = self.model.backbone, None
        if self.tokenizer is not None and shows_tokenizer:
            token_size = token_size_of(self.tokenizer, backbone.grid)
        return PretrainView(self.config.view, backbone.image_size, token_size)

    def encoder(self, runtime: Runtime, begun: CacheKey | None) -> Encoder | None:
        """The tokenizer on the device, in the precision of the token cache, if any; None if pixels are predicted."""
        return None if self.tokenizer is None else token_encoder(self.tokenizer, self.files, self.cache_key(1), runtime, begun)

    def prepared(
        self, stream: Iterator[Batch], device: torch.device, encoder: Encoder | None, cached: CachedTokens | None = None
    ) -> Iterator[Batch]:
        """Batches for the objective; tokens are read from the cache, if there is one, else computed."""
        statistics = self.model.preprocessing
        if cached is not None:
            stream = cached.tokenized(stream)
        stream = with_positions(stream, self.recover_all)
        stream = normalized(to_device(stream, device), statistics.mean, statistics.std)
        return stream if encoder is None or cached is not None else tokenized(stream, encoder, self.model.backbone.grid)


def measured_head(
    setup: Setup, model: MaskedImageModel, runtime: Runtime, batches: Callable[..., Iterator[Batch]]
) -> Callable[[], tuple[float, float]]:
    """A function that gives the masked loss on the fixed images, and the entropy of their tokens' frequencies, in nats."""

    def measure() -> tuple[float, float]:
        assert setup.model.vocabulary is not None
        model.to(runtime.device)
        evaluator = MaskedAccuracy(runtime.precision()(model.predict), batches, setup.recover_all)
        loss = dict(evaluator.run())["loss"]
        model.cpu()  # where all processes have it before the first step
        return loss, math.log(token_usage(batches(), setup.model.vocabulary, setup.recover_all).perplexity)

    return measure


def view_options(view: ViewConfig, image_size: ImageSize, patch: int, seed: int) -> str:
    """What `pretrain` and `tokenize` have to be given alike, as options: each that is not the default, with a blank before it."""
    given: list[tuple[str, object]] = [
        (f"--{name}", value)
        for name, value, default in (
            ("image-size", " ".join(map(str, dict.fromkeys(as_pair(image_size)))), str(PLAIN_IMAGE_SIZE)),
            ("patch", patch, DEFAULT_PATCH),
            ("seed", seed, TrainConfig.seed),
        )
        if value != default
    ]
    for field in fields(ViewConfig):
        value = getattr(view, field.name)
        if value != field.default:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else value
            given.append((f"--view.{field.name.replace('_', '-')}", text))
    return "".join(f" {option} {value}" for option, value in given)


def model_of(
    config: PretrainRun, tokenizer: TokenizerNetwork | OwnTokenizer | None, origin: Origin | None = None
) -> MaskedImageModelConfig:
    """The network a run asks for; its channels and vocabulary are the tokenizer's, where there is one, all else that of `init`.

    Raises:
        UserError: for an image size that is not a whole number of patches, or other channels than the tokenizer's.
    """
    channels = config.channels or (3 if tokenizer is None else tokenizer.channels)
    if tokenizer is not None and channels != tokenizer.channels:
        raise UserError(f"`channels` {channels} does not fit a tokenizer of {tokenizer.channels}; leave `channels` out")
    if origin is not None:
        model = origin.target(config, channels, tokenizer)
        _check_grid(model.backbone)
        return model
    if tokenizer is None:
        return network_of(config, channels, vocabulary=None)
    return network_of(config, channels, vocabulary=tokenizer.vocabulary, fingerprint=tokenizer.fingerprint)


def network_of(config: PretrainRun, channels: int, *, vocabulary: int | None, fingerprint: str = "") -> MaskedImageModelConfig:
    """The network that a config with nothing left open asks for, without `init`; `vocabulary` None is for pixels.

    Raises:
        UserError: for an image size that is not a whole number of patches.
    """
    backbone = config.network.backbone(
        resolved(config.size),
        resolved(config.patch),
        resolved(config.image_size),
        drop_path=config.network.drop_path,
        final_norm=True,
        channels=channels,
    )
    backbone = replace(backbone, mask_token=True, pretrain_init=True)
    _check_grid(backbone)
    if config.cls_branch is not None and config.cls_branch > backbone.depth:
        raise UserError(
            f"`cls_branch` must be at most the {backbone.depth} blocks of `size` {config.size}, got {config.cls_branch}"
        )
    return MaskedImageModelConfig(
        backbone=backbone,
        vocabulary=vocabulary,
        cls_branch=None if config.cls_branch is None else ClsBranchConfig(early_layer=config.cls_branch),
        preprocessing=config.network.preprocessing,
        tokenizer=fingerprint,
    )


def _check_grid(backbone: BackboneConfig) -> None:
    if min(backbone.grid) < 2:
        raise UserError(
            f"`image_size` {by(backbone.image_size)} holds {by(backbone.grid)} patches of `patch` {backbone.patch[0]}; "
            "at least 2x2 are needed"
        )


def _pixels(
    config: PretrainRun, tokenizer: TokenizerNetwork | OwnTokenizer | None, origin: Origin | None, files: ImageList
) -> Pixels:
    """Channels, range and statistics: the first two are the tokenizer's, where there is one, the last those of `init`."""
    base, channels = config.network.preprocessing, 3
    if origin is not None:
        base, channels = origin.preprocessing, origin.backbone.channels
    if tokenizer is not None:
        base, channels = replace(base, value_range=tokenizer.value_range), tokenizer.channels
    return decided_pixels(
        files,
        base,
        channels,
        channels=config.channels or (None if tokenizer is None else channels),
        value_range=config.value_range,
        own_statistics=config.network.has_own_statistics,
    )


def _check_range(tokenizer: TokenizerNetwork | OwnTokenizer | None, pixels: Pixels) -> None:
    """Raise a `UserError` for images of another range than those that the tokenizer was trained on."""
    if tokenizer is not None and pixels.preprocessing.value_range != tokenizer.value_range:
        ranges = [
            "images of 8 bits" if one is None else f"values {one[0][0]:g} to {one[0][1]:g}"
            for one in (tokenizer.value_range, pixels.preprocessing.value_range)
        ]
        raise UserError(
            f"the tokenizer was trained on {ranges[0]}, and here are {ranges[1]}; train one on these with beitkit tokenizer"
        )


def _check_own(config: PretrainRun, own: OwnParts) -> None:
    """Raise a `UserError` where stored views are asked for, whose tokens are kept by the contents of files."""
    given = "images" if own.images is not None else "augmentation" if own.augmentation is not None else None
    if given is not None and (config.views is not None or config.tokens is not None):
        raise UserError(f"`views` keeps the tokens of files' views, and `{given}` is a Python object; leave one of the two out")


def _images_of_steps(config: PretrainRun) -> int | None:
    """How many images a run of `steps` shows; None where its length is in epochs."""
    if config.train.steps is None:
        return None
    return config.train.steps * resolved(config.train.batch_size) * (config.loop.accumulate or 1)


def _tried(config: PretrainRun, function: PatchTokenizer, pixels: Pixels, device: torch.device) -> OwnTokenizer:
    """A caller's tokenizer of these images, tried on fixed ones."""
    height, width = as_pair(resolved(config.image_size))
    patch = resolved(config.patch)
    return OwnTokenizer.of(
        function,
        described(function),
        grid=(height // patch, width // patch),
        patch=patch,
        channels=pixels.channels,
        value_range=pixels.preprocessing.value_range,
        device=device,
    )


def _tokenizer(config: PretrainRun) -> TokenizerNetwork | None:
    if config.target == "pixels":
        return None
    refuse_given(config.tokenizer)
    if config.tokenizer is None:
        raise UserError(
            "missing required option `tokenizer` (a run folder of beitkit tokenizer, or a file); "
            "only `target='pixels'` does without"
        )
    return load_tokenizer(config.tokenizer)
