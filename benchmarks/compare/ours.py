"""Our side of each race, through the code that runs use: the trainer, its parameter groups, the stage that computes tokens."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from beitkit.configs.train import OptimConfig, SpeedConfig
from beitkit.contracts import Batch
from beitkit.data.stream import token_ids, tokenized
from beitkit.inference.networks import Probabilities, cast_weights_
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.objectives.classify import Classify
from beitkit.objectives.masked import MaskedTokens
from beitkit.runs.training.speed import accelerate
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.frozen import Encoder
from beitkit.train.machine.runtime import Runtime, StopRequest
from beitkit.train.optim import Group, layered_groups
from beitkit.train.schedule import Schedule
from beitkit.train.step import StepResult, Trainer
from benchmarks.compare.turns import Candidate, Step
from benchmarks.compare.workload import CLIP, LEARNING_RATE, TOKENIZER, Inputs, Workload

STEPS = 1_000_000
"""Length of the schedule whose beginning is raced."""
LAYER_DECAY = 0.65
"""Fine-tuning has a parameter group for every layer; this is the base size's decay (method 4.2)."""

CACHED, UNCACHED, TOKENIZER_ALONE, OURS = "ours, cached tokens", "ours, with tokenizer", "tokenizer", "ours"


class OurNetworks:
    """Networks that several candidates share, made when first asked for."""

    def __init__(self, workload: Workload, runtime: Runtime) -> None:
        self._workload, self._runtime = workload, runtime

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The batch of all candidates."""
        return self._workload.inputs(self._runtime.device)

    @functools.cached_property
    def masked(self) -> MaskedImageModel:
        """The network that is pre-trained."""
        return self._workload.masked_model().to(self._runtime.device)

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The network that is fine-tuned."""
        return self._workload.classifier().to(self._runtime.device)

    @functools.cached_property
    def tokenizer(self) -> DiscreteVAE:
        """The tokenizer, as `load_tokenizer` gives it."""
        torch.manual_seed(0)
        return DiscreteVAE(TOKENIZER).eval().requires_grad_(False).to(self._runtime.device)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The tokenizer in the run's precision, which a run uses where it finds the tokens of float32."""
        return Encoder.laid_out(self.tokenizer, self._runtime.autocast)

    @torch.no_grad()
    def masked_outputs(self) -> Tensor:
        """Float32 logits at the masked positions."""
        return _judged(self.masked, lambda: self.masked(self.inputs.images, self.inputs.mask))

    @torch.no_grad()
    def class_outputs(self) -> Tensor:
        """Float32 logits of the classes."""
        return _judged(self.classifier, lambda: self.classifier(self.inputs.images))


def pretraining(networks: OurNetworks, runtime: Runtime, speed: SpeedConfig) -> list[Candidate]:
    """An optimizer step with tokens that are given, the same with tokens that are computed, and the tokenizer alone."""

    @functools.cache
    def trainer() -> Trainer:
        objective, optim = MaskedTokens(networks.masked), OptimConfig(clip=CLIP)
        return _trainer(objective, layered_groups(networks.masked, networks.masked, optim), optim, runtime, speed)

    def batches(*, has_tokens: bool) -> Iterator[Batch]:
        given, grid = networks.inputs, networks.masked.backbone.config.grid
        batch = {"images": given.images, "mask": given.mask, "positions": given.positions}
        if has_tokens:
            return itertools.repeat(batch | {"tokens": given.tokens})
        return tokenized(itertools.repeat(batch | {"token_images": given.token_images}), networks.encoder, grid)

    def tokenize() -> Step:
        given, encoder, grid = networks.inputs.token_images, networks.encoder, networks.masked.backbone.config.grid
        return lambda: token_ids(given, encoder, grid)

    return [
        Candidate(CACHED, "optimizer step, tokens given", lambda: _steps(trainer(), batches(has_tokens=True)), is_ours=True),
        Candidate(
            UNCACHED, "optimizer step, tokens computed", lambda: _steps(trainer(), batches(has_tokens=False)), is_ours=True
        ),
        Candidate(TOKENIZER_ALONE, "tokens of a batch, ours", tokenize, is_ours=True),
    ]


def finetuning(networks: OurNetworks, runtime: Runtime, speed: SpeedConfig) -> list[Candidate]:
    """An optimizer step of classification."""

    def prepare() -> Step:
        given, optim = networks.inputs, OptimConfig(clip=None, layer_decay=LAYER_DECAY)
        groups = layered_groups(networks.classifier, networks.classifier, optim)
        trainer = _trainer(Classify(networks.classifier, label_smoothing=0.0), groups, optim, runtime, speed)
        return _steps(trainer, itertools.repeat({"images": given.images, "labels": given.labels}))

    return [Candidate(OURS, "optimizer step", prepare, is_ours=True)]


def inference(networks: OurNetworks, runtime: Runtime) -> list[Candidate]:
    """Probabilities of the classes, as `beitkit predict` computes them."""

    def prepare() -> Step:
        model = cast_weights_(copy.deepcopy(networks.classifier).eval(), runtime.autocast)
        images, probabilities = networks.inputs.images, Probabilities()

        def step() -> Tensor:
            with torch.no_grad(), runtime.precision():
                return probabilities(model, images)

        return step

    return [Candidate(OURS, "probabilities", prepare, is_ours=True)]


def _trainer(objective: nn.Module, groups: list[Group], optim: OptimConfig, runtime: Runtime, speed: SpeedConfig) -> Trainer:
    schedule = Schedule(STEPS, 0, 1, STEPS, LEARNING_RATE, LEARNING_RATE, seed=0)
    accelerate(objective.train(), speed, runtime, schedule)
    return Trainer(objective, groups, schedule=schedule, optim=optim, runtime=runtime, accumulation_steps=runtime.world_size)


def _steps(trainer: Trainer, stream: Iterator[Batch]) -> Step:
    counter, stop = itertools.count(), StopRequest()

    def step() -> StepResult:
        done = next(counter)
        losses = trainer.forward_backward(stream, done)
        return trainer.update(losses, trainer.clip(), done, stop)

    return step


def _judged(model: nn.Module, outputs: Callable[[], Tensor]) -> Tensor:
    """Outputs in evaluation mode; the mode is put back."""
    was_training = model.training
    model.eval()
    try:
        return outputs()
    finally:
        model.train(was_training)
