"""The network that a run with `init` goes on from: what it is, whether its head is of use, and what learns first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import BackboneConfig, MaskedImageModelConfig, by
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.train import OptimConfig
from beitkit.errors import UserError
from beitkit.files import read_json
from beitkit.interop.handover import Predicted, Target, predicted_by, target_config
from beitkit.interop.kinds import TASKS, kind_of_config
from beitkit.interop.load import load
from beitkit.interop.reading.checkpoints import read_checkpoint
from beitkit.interop.reading.understood import Checkpoint
from beitkit.nn.models import MaskedImageModel
from beitkit.runs.pretrain.choose import ContinuedFacts, OwnRate, head_steps, is_of_size
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.tokenizers.frozen import TokenizerNetwork
from beitkit.tokenizers.own import OwnTokenizer
from beitkit.train.folder import RunFolder

HEAD_MARGIN = 0.1
"""Nats by which the masked loss with a head of unknown tokenizer must lie below both baselines, for the head to be kept. One that
was trained for other tokens is far above them: sure of itself, and wrong."""
RECORD = "start.json"
"""What was decided at a run's first step, for a continued run and for the report."""
HEADS = ("lm_head.", "cls_branch.cls_pt_lm_head.")


@dataclass(frozen=True)
class Origin:
    """A checkpoint that a run goes on from."""

    checkpoint: Checkpoint

    @classmethod
    def read(cls, config: PretrainRun) -> Origin | None:
        """The one of `init`, checked against what else is said of the network; None without `init`.

        Raises:
            UserError: if there is no network, or other options describe another one.
        """
        if config.init is None:
            return None
        origin = cls(read_checkpoint(config.init))
        origin._check(config)
        return origin

    @property
    def backbone(self) -> BackboneConfig:
        """Of the file."""
        return self.checkpoint.config.backbone

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the file."""
        return self.checkpoint.config.preprocessing

    def facts(self, images: int) -> ContinuedFacts:
        """What choices depend on."""
        return ContinuedFacts(images=images, backbone=self.backbone, own=_own_rate(self.checkpoint.path))

    def digest(self) -> str:
        """Digest of what the file holds of a network."""
        return digest_of(self.checkpoint.config, {name: stored.read() for name, stored in self.checkpoint.tensors.items()})

    def target(
        self, config: PretrainRun, channels: int, tokenizer: TokenizerNetwork | OwnTokenizer | None
    ) -> MaskedImageModelConfig:
        """The network that it becomes: with the head of the tokenizer's vocabulary, in the size and channels of the images.

        Raises:
            UserError: if it cannot.
        """
        try:
            found = target_config(self.checkpoint.config, Target(**self._wishes(config, channels, tokenizer)))
        except UserError as problem:
            raise UserError(f"{self.checkpoint.path} ({self.checkpoint.layout}): {problem}") from None
        assert isinstance(found, MaskedImageModelConfig)
        return replace(found, tokenizer="" if tokenizer is None else tokenizer.fingerprint)

    def load(
        self, config: PretrainRun, model: MaskedImageModelConfig, tokenizer: TokenizerNetwork | OwnTokenizer | None
    ) -> MaskedImageModel:
        """The network; what the file lacks is drawn by the global generator."""
        network = load(self.checkpoint.path, **self._wishes(config, model.backbone.channels, tokenizer))
        assert isinstance(network, MaskedImageModel)
        network.config = model
        return network

    def _wishes(self, config: PretrainRun, channels: int, tokenizer: TokenizerNetwork | OwnTokenizer | None) -> dict[str, Any]:
        vocabulary: Predicted = "pixels" if tokenizer is None else tokenizer.vocabulary
        return {
            "task": "masked",
            "image_size": config.image_size,
            "drop_path": config.network.drop_path,
            "channels": channels,
            "vocabulary": vocabulary,
        }

    def _check(self, config: PretrainRun) -> None:
        """Raise a `UserError` for options that describe another network than the file's."""
        backbone, path, network, plain = self.backbone, config.init, config.network, NetworkConfig()
        problem = ""
        if config.patch not in (None, backbone.patch[0]):
            problem = (
                f"`patch` {config.patch} is not the {by(backbone.patch)} of {path}: positions can be resized, patches cannot"
            )
        elif config.size is not None and not is_of_size(backbone, config.size):
            problem = f"`size` {config.size} is not the network of {path} (width {backbone.width}, {backbone.depth} blocks)"
        elif network.positions not in (plain.positions, backbone.relative_positions):
            problem = f"`network.positions` {network.positions} are not those of {path} ({backbone.relative_positions})"
        elif network.layer_scale is not None and (network.layer_scale or None) != backbone.layer_scale:
            problem = f"`network.layer_scale` {network.layer_scale:g} is for fresh weights, and those of {path} are trained"
        elif network.has_own_statistics or _statistics(network.preprocessing) not in map(
            _statistics, (plain.preprocessing, self.preprocessing)
        ):
            problem = f"`network` says how pixels are normalized, and {path} was trained with statistics of its own"
        elif config.cls_branch not in (None, self._early_layer()):
            problem = f"`cls_branch` {config.cls_branch} is not what {path} has ({self._early_layer() or 'no such branch'})"
        elif self._early_layer() is not None and config.target == "tokens" and config.recover == "all":
            raise UserError(f"{path} has a class-token branch, which predicts masked patches only; give `recover='masked'`")
        if problem:
            raise UserError(f"{problem}; leave it out")

    def _early_layer(self) -> int | None:
        found = self.checkpoint.config
        branch = found.cls_branch if isinstance(found, MaskedImageModelConfig) else None
        return None if branch is None else branch.early_layer


def _own_rate(path: Path) -> OwnRate | None:
    """How fast the pre-training run in a folder learned; None where there is none."""
    try:
        there = read_json(path / "config.json")
        train, optim = there["train"], there["optim"]
        batch = train["batch_size"] * (there["loop"]["accumulate"] or 1)
        names = ("lr_batch", "lr_scaling")
        scale = OptimConfig(**{name: optim[name] for name in names}).scale(batch)
        return OwnRate(train["lr"] * scale, batch, "init" in there) if there["verb"] == "pretrain" else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


class StartRecord(NamedTuple):
    """How a run with `init` begins; stored in its folder."""

    head: str
    """Whether the head is kept or fresh, and why, in a sentence."""
    head_steps: int
    """Steps for which what is fresh learns alone; 0 where the head is kept."""
    fresh: tuple[str, ...]
    """The tensors that are fresh, by name."""

    @property
    def has_fresh_head(self) -> bool:
        """Whether the head was drawn anew."""
        return any(name.startswith(HEADS) for name in self.fresh)

    @classmethod
    def recorded(cls, folder: RunFolder) -> StartRecord | None:
        """That of a run that has begun; None before."""
        path = folder.path / RECORD
        if not path.exists():
            return None
        try:
            content = read_json(path)
            return cls(str(content["head"]), int(content["head_steps"]), tuple(map(str, content["fresh"])))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged; choose another `out`, or put the file back") from None


def begin(
    origin: Origin,
    model: MaskedImageModel,
    config: PretrainRun,
    folder: RunFolder,
    steps: int,
    measured: Callable[[], tuple[float, float]],
) -> StartRecord:
    """Decide whether the head is kept, and draw it anew if not; collective, and decided once in a run's life.

    Args:
        origin: what the run goes on from.
        model: the network as loaded, on the device.
        config: of the run.
        folder: of the run.
        steps: its length.
        measured: the masked loss with this head on the fixed images, and the entropy of their tokens' frequencies, in nats.
    """
    beginning = StartRecord.recorded(folder)
    if beginning is None and folder.processes.is_main:
        beginning = _decide(origin, model, config, steps, measured)
        folder.write_json(RECORD, beginning._asdict())
    folder.processes.barrier()
    beginning = beginning or StartRecord.recorded(folder)
    assert beginning is not None
    if beginning.has_fresh_head:
        model.reset_head()
    return beginning


def _decide(
    origin: Origin, model: MaskedImageModel, config: PretrainRun, steps: int, measured: Callable[[], tuple[float, float]]
) -> StartRecord:
    assert model.load_report is not None
    fresh = [record.name for record in model.load_report.records if record.fate == "fresh"]
    is_kept, why = _known(origin, model.config) or _judged(*measured(), model.config.outputs)
    heads = [name for name in model.state_dict() if name.startswith(HEADS)]
    names = (*fresh, *(name for name in heads if not is_kept and name not in fresh))
    if is_kept:
        return StartRecord(f"head kept: {why}", 0, names)
    length, reason = head_steps(config, steps)
    if length >= steps:
        raise UserError(f"`head_steps` {length} leave nothing of a run of {steps} steps to the rest of the network; give fewer")
    others = {"backbone.mask_token": "mask token", "backbone.norm.weight": "final norm"}
    learning = ", ".join(["head", *(word for name, word in others.items() if name in fresh)])
    return StartRecord(f"head fresh: {why}; what is fresh ({learning}) learns alone for {length} steps ({reason})", length, names)


def _known(origin: Origin, model: MaskedImageModelConfig) -> tuple[bool, str] | None:
    """Whether the head is kept, and why, as far as the file says; None where it has to be measured."""
    found = origin.checkpoint.config
    if not isinstance(found, MaskedImageModelConfig):
        return False, f"the file is for {TASKS[kind_of_config(found)]} and has none for masked patches"
    if (predicted_by(found), found.outputs) != (predicted_by(model), model.outputs):
        return False, f"the file's predicts {_targets(found)}, and here are {_targets(model)}"
    if model.vocabulary is None:
        return True, f"it predicts {_targets(model)}"
    if found.tokenizer:
        is_same = found.tokenizer == model.tokenizer
        return is_same, "it was trained with this tokenizer" if is_same else "the file's was trained with another tokenizer"
    return None


def _judged(loss: float, entropy: float, vocabulary: int) -> tuple[bool, str]:
    """Whether a head's loss shows that it was trained for these tokens."""
    uniform = math.log(vocabulary)
    is_kept = loss < min(uniform, entropy) - HEAD_MARGIN
    against = f"{entropy:.2f} by the tokens' frequencies and {uniform:.2f} by guessing"
    verdict = "as of its own tokenizer" if is_kept else "so it is of another tokenizer, or of no use on these images"
    return is_kept, (
        f"the file does not name its tokenizer, and its masked loss is {loss:.2f}, against {against} (to be kept, "
        f"{HEAD_MARGIN:g} below both), {verdict}"
    )


def _targets(config: MaskedImageModelConfig) -> str:
    if config.features is not None:
        return f"{config.features:,} features"
    return f"{config.outputs:,} pixel values" if config.vocabulary is None else f"{config.vocabulary:,} visual tokens"


def _statistics(preprocessing: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return preprocessing.mean, preprocessing.std
