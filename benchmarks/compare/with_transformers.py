"""The transformers library in each race: the same network, read from what `beitkit.save` writes, in a plain script's loop.

The official step is rebuilt from two parts: transformers' encoder with its head applied to the masked positions only, as in the
official code (transformers' own goes over all of them), and DALL-E's encoder in float32, which the official loop calls for
every batch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beitkit.interop.save import save
from beitkit.tokenizers.geometries import Parts, build_parts
from beitkit.train.machine.runtime import Runtime
from benchmarks.compare.plain_script import probabilities, trained
from benchmarks.compare.turns import Candidate, Step
from benchmarks.compare.workload import CLIP, TOKENIZER, Workload

TRANSFORMERS, OFFICIAL, REDUCED = "transformers", "official step", "transformers, bfloat16 weights"


class TheirNetworks:
    """Networks that several candidates share, made when first asked for."""

    def __init__(self, workload: Workload, runtime: Runtime) -> None:
        self._workload, self._runtime = workload, runtime
        self.inputs = workload.inputs(runtime.device)

    @functools.cached_property
    def masked(self) -> Any:
        """`BeitForMaskedImageModeling` with our weights."""
        return self._read("BeitForMaskedImageModeling", self._workload.masked_model())

    @functools.cached_property
    def classifier(self) -> Any:
        """`BeitForImageClassification` with our weights."""
        return self._read("BeitForImageClassification", self._workload.classifier())

    @functools.cached_property
    def tokenizer(self) -> Parts:
        """DALL-E's networks in float32, as they come."""
        parts = build_parts(TOKENIZER)
        parts.encoder.eval().requires_grad_(False).to(self._runtime.device)
        return parts

    @torch.no_grad()
    def masked_outputs(self) -> Tensor:
        """Float32 logits at the masked positions."""
        logits = self.masked.eval()(self.inputs.images, bool_masked_pos=self.inputs.mask).logits
        return logits[self.inputs.mask]

    @torch.no_grad()
    def class_outputs(self) -> Tensor:
        """Float32 logits of the classes."""
        return self.classifier.eval()(self.inputs.images).logits

    def _read(self, kind: str, ours: Any) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            save(ours, Path(folder), format="huggingface")
            return getattr(transformers, kind).from_pretrained(folder).to(self._runtime.device)


def pretraining(networks: TheirNetworks, runtime: Runtime) -> list[Candidate]:
    """transformers' own step, and the official one as far as it can be rebuilt."""
    given = networks.inputs

    def own() -> Step:
        model, labels = networks.masked.train(), given.tokens[given.mask]
        return trained(model, lambda: model(given.images, bool_masked_pos=given.mask, labels=labels).loss, runtime, CLIP)

    def official() -> Step:
        model, parts = networks.masked.train(), networks.tokenizer

        def tokens() -> Tensor:
            with torch.no_grad(), torch.autocast(runtime.device.type, enabled=False):
                pixels = parts.pixel_scale * given.token_images.float().div(255) + parts.pixel_shift
                return parts.encoder(pixels).argmax(1).flatten(1)

        def loss() -> Tensor:
            targets = tokens()[given.mask]
            features = model.layernorm(model.beit(given.images, bool_masked_pos=given.mask).last_hidden_state)
            return F.cross_entropy(model.lm_head(features[:, 1:][given.mask]).float(), targets)

        return trained(model, loss, runtime, CLIP)

    return [
        Candidate(TRANSFORMERS, "optimizer step, tokens given, head on all positions", own),
        Candidate(OFFICIAL, "optimizer step of transformers with its head on masked positions, float32 tokenizer", official),
    ]


def finetuning(networks: TheirNetworks, runtime: Runtime) -> list[Candidate]:
    """An optimizer step of classification."""

    def prepare() -> Step:
        model, given = networks.classifier.train(), networks.inputs
        return trained(model, lambda: model(given.images, labels=given.labels).loss, runtime, None)

    return [Candidate(TRANSFORMERS, "optimizer step", prepare)]


def inference(networks: TheirNetworks, runtime: Runtime) -> list[Candidate]:
    """Probabilities of the classes, in autocast as ours and, where that reduces precision, with the weights in bfloat16."""

    def prepare() -> Step:
        model = networks.classifier.eval()
        return probabilities(lambda: model(networks.inputs.images).logits, runtime.precision)

    def reduced() -> Step:
        # A copy, because the other one keeps its float32 weights.
        model, images = copy.deepcopy(networks.classifier).eval().to(torch.bfloat16), networks.inputs.images.to(torch.bfloat16)
        return probabilities(lambda: model(images).logits, contextlib.nullcontext)

    return [
        Candidate(TRANSFORMERS, "probabilities, in autocast", prepare),
        *([Candidate(REDUCED, "probabilities, no autocast", reduced)] if runtime.autocast is not None else []),
    ]
