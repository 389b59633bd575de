"""Races: for each job the candidates, their work on the same network, and the pairs that are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.configs.train import SpeedConfig
from beitkit.contracts import precision_name
from beitkit.planning.workload import network_flops, tokenizer_flops
from beitkit.train.machine.runtime import Runtime
from benchmarks.compare import ours, with_timm, with_transformers
from benchmarks.compare.config import BenchJob, Rival
from benchmarks.compare.ours import CACHED, OURS, TOKENIZER_ALONE, UNCACHED, OurNetworks
from benchmarks.compare.turns import Candidate
from benchmarks.compare.with_timm import TIMM, TimmNetworks
from benchmarks.compare.with_transformers import OFFICIAL, REDUCED, TRANSFORMERS, TheirNetworks
from benchmarks.compare.workload import TOKENIZER, Workload

TOLERANCE = 1e-4
"""Largest difference of two networks' float32 outputs, as a share of the largest output, that rounding explains."""

FlopsByPrecision = Mapping[str, int]
"""Operations of matrix products per image, by the precision they are done in."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """One job, and the candidates that do it."""

    job: str
    images: int
    """Images of a step."""
    candidates: Sequence[Candidate]
    flops: Mapping[str, FlopsByPrecision]
    """By the candidate's name; empty where no matrix product is in it."""
    comparisons: Sequence[tuple[str, str]]
    """Names of two candidates: how many times as fast is the first?"""
    parities: Mapping[str, Callable[[], float]]
    """By rival: how far its network's outputs are from ours, see `parity`."""
    share_of: Mapping[str, str]
    """Jobs that a candidate's share of the matrix-product rate stands for, and the name of that candidate."""


def parity(own: Tensor, theirs: Tensor) -> float:
    """Largest difference of two networks' outputs, as a share of our largest.

    Raises:
        AssertionError: if it is too large for rounding, so the two are not the same network.
    """
    assert own.shape == theirs.shape, f"outputs of shapes {tuple(own.shape)} and {tuple(theirs.shape)}"
    difference = float((own - theirs).abs().max() / own.abs().max())
    assert difference <= TOLERANCE, f"the candidates are different networks: outputs differ by {difference:.2g} of the largest"
    return difference


def race_of(job: BenchJob, workload: Workload, runtime: Runtime, rivals: Sequence[Rival], speed: SpeedConfig) -> Race:
    """The race of a job with a network; nothing is built before a candidate is asked to prepare."""
    races = {"pretraining": _pretraining, "finetuning": _finetuning, "inference": _inference}
    return races[job](workload, runtime, rivals, speed)


def _pretraining(workload: Workload, runtime: Runtime, rivals: Sequence[Rival], speed: SpeedConfig) -> Race:
    own = OurNetworks(workload, runtime)
    candidates = ours.pretraining(own, runtime, speed)
    config, precision = workload.masked_config, precision_name(runtime.autocast)
    grid = config.backbone.grid
    step = network_flops(config, workload.num_masked).step(recompute=False)
    surplus = network_flops(config, grid[0] * grid[1]).step(recompute=False)
    tokens, exact = tokenizer_flops(TOKENIZER, grid), _exact_tokenizer_flops(grid)
    own_tokens = _together({precision: tokens - exact}, {"float32": exact})
    flops: dict[str, FlopsByPrecision] = {
        CACHED: {precision: step},
        UNCACHED: _together({precision: step}, own_tokens),
        TOKENIZER_ALONE: own_tokens,
    }
    comparisons, parities = [(CACHED, UNCACHED)], {}
    if "transformers" in rivals:
        theirs = TheirNetworks(workload, runtime)
        candidates += with_transformers.pretraining(theirs, runtime)
        flops |= {TRANSFORMERS: {precision: surplus}, OFFICIAL: _together({precision: step}, {"float32": tokens})}
        comparisons += [(CACHED, OFFICIAL), (UNCACHED, OFFICIAL), (CACHED, TRANSFORMERS)]
        parities[TRANSFORMERS] = lambda: parity(own.masked_outputs(), theirs.masked_outputs())
    return Race(
        job="pretraining",
        images=workload.batch_size,
        candidates=candidates,
        flops=flops,
        comparisons=comparisons,
        parities=parities,
        share_of={"pretraining": CACHED, "tokenizer": TOKENIZER_ALONE},
    )


def _finetuning(workload: Workload, runtime: Runtime, rivals: Sequence[Rival], speed: SpeedConfig) -> Race:
    own, theirs, timm = OurNetworks(workload, runtime), TheirNetworks(workload, runtime), TimmNetworks(workload, runtime)
    candidates = ours.finetuning(own, runtime, speed)
    candidates += with_transformers.finetuning(theirs, runtime) if "transformers" in rivals else []
    candidates += with_timm.finetuning(timm, runtime) if "timm" in rivals else []
    flops = {precision_name(runtime.autocast): network_flops(workload.classifier_config).step(recompute=False)}
    return _of_classifiers("finetuning", workload, candidates, flops, own, theirs, timm)


def _inference(workload: Workload, runtime: Runtime, rivals: Sequence[Rival], speed: SpeedConfig) -> Race:
    own, theirs, timm = OurNetworks(workload, runtime), TheirNetworks(workload, runtime), TimmNetworks(workload, runtime)
    candidates = ours.inference(own, runtime)
    candidates += with_transformers.inference(theirs, runtime) if "transformers" in rivals else []
    candidates += with_timm.inference(timm, runtime) if "timm" in rivals else []
    flops = {precision_name(runtime.autocast): network_flops(workload.classifier_config).forward}
    return _of_classifiers("inference", workload, candidates, flops, own, theirs, timm)


def _of_classifiers(
    job: BenchJob,
    workload: Workload,
    candidates: Sequence[Candidate],
    flops: FlopsByPrecision,
    own: OurNetworks,
    theirs: TheirNetworks,
    timm: TimmNetworks,
) -> Race:
    """A race in which all do the same work on one network."""
    names = [candidate.name for candidate in candidates]
    outputs = {TRANSFORMERS: lambda: theirs.class_outputs(), TIMM: lambda: timm.class_outputs()}
    return Race(
        job=job,
        images=workload.batch_size,
        candidates=candidates,
        flops=dict.fromkeys(names, flops),
        comparisons=[(OURS, name) for name in (TRANSFORMERS, REDUCED, TIMM) if name in names],
        parities={rival: lambda get=get: parity(own.class_outputs(), get()) for rival, get in outputs.items() if rival in names},
        share_of={job: OURS},
    )


def _exact_tokenizer_flops(grid: Pair) -> int:
    """What our tokenizer of DALL-E's geometry computes in float32 in any precision: first and last layer, skips that widen."""
    width, positions = TOKENIZER.hidden, grid[0] * grid[1]
    first = 7 * 7 * TOKENIZER.channels * width * 64 * positions  # 8 x 8 pixels a token
    widening = sum(width * 2**i * width * 2 ** (i + 1) * 4 ** (2 - i) * positions for i in range(3))
    return 2 * (first + widening + 8 * width * TOKENIZER.vocabulary * positions)


def _together(*parts: FlopsByPrecision) -> FlopsByPrecision:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
