"""The races there are: for a job, everybody who does it on the same network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from beitkit.configs.model import Pair
from beitkit.configs.verbs.bench import BenchJob, Rival
from beitkit.contracts import precision_name
from beitkit.measuring import ours, with_timm, with_transformers
from beitkit.measuring.ours import CACHED, OURS, TOKENIZER_ALONE, UNCACHED, Accelerate, OurNetworks
from beitkit.measuring.race import Flops, Race, parity
from beitkit.measuring.turns import Contestant
from beitkit.measuring.with_timm import TIMM, TimmNetworks
from beitkit.measuring.with_transformers import OFFICIAL, REDUCED, TRANSFORMERS, TheirNetworks
from beitkit.measuring.workload import TOKENIZER, Workload
from beitkit.planning.workload import network_flops, tokenizer_flops
from beitkit.train.machine.runtime import Runtime


def race_of(job: BenchJob, workload: Workload, runtime: Runtime, rivals: Sequence[Rival], accelerate: Accelerate) -> Race:
    """The race of a job with a network; nothing is built before somebody is asked to prepare."""
    races = {"pretraining": _pretraining, "finetuning": _finetuning, "inference": _inference}
    return races[job](workload, runtime, rivals, accelerate)


def _pretraining(workload: Workload, runtime: Runtime, rivals: Sequence[Rival], accelerate: Accelerate) -> Race:
    own = OurNetworks(workload, runtime)
    contestants = ours.pretraining(own, runtime, accelerate)
    config, precision = workload.masked_config, precision_name(runtime.autocast)
    grid = config.backbone.grid
    step = network_flops(config, workload.num_masked).step(recompute=False)
    surplus = network_flops(config, grid[0] * grid[1]).step(recompute=False)
    tokens, exact = tokenizer_flops(TOKENIZER, grid), _exact_tokenizer_flops(grid)
    own_tokens = _together({precision: tokens - exact}, {"float32": exact})
    flops: dict[str, Flops] = {
        CACHED: {precision: step},
        UNCACHED: _together({precision: step}, own_tokens),
        TOKENIZER_ALONE: own_tokens,
    }
    comparisons, parities = [(CACHED, UNCACHED)], {}
    if "transformers" in rivals:
        theirs = TheirNetworks(workload, runtime)
        contestants += with_transformers.pretraining(theirs, runtime)
        flops |= {TRANSFORMERS: {precision: surplus}, OFFICIAL: _together({precision: step}, {"float32": tokens})}
        comparisons += [(CACHED, OFFICIAL), (UNCACHED, OFFICIAL), (CACHED, TRANSFORMERS)]
        parities[TRANSFORMERS] = lambda: parity(own.masked_outputs(), theirs.masked_outputs())
    return Race(
        job="pretraining",
        pictures=workload.batch_size,
        contestants=contestants,
        flops=flops,
        comparisons=comparisons,
        parities=parities,
        share_of={"pretraining": CACHED, "tokenizer": TOKENIZER_ALONE},
    )


def _finetuning(workload: Workload, runtime: Runtime, rivals: Sequence[Rival], accelerate: Accelerate) -> Race:
    own, theirs, timm = OurNetworks(workload, runtime), TheirNetworks(workload, runtime), TimmNetworks(workload, runtime)
    contestants = ours.finetuning(own, runtime, accelerate)
    contestants += with_transformers.finetuning(theirs, runtime) if "transformers" in rivals else []
    contestants += with_timm.finetuning(timm, runtime) if "timm" in rivals else []
    flops = {precision_name(runtime.autocast): network_flops(workload.classifier_config).step(recompute=False)}
    return _of_classifiers("finetuning", workload, contestants, flops, own, theirs, timm)


def _inference(workload: Workload, runtime: Runtime, rivals: Sequence[Rival], accelerate: Accelerate) -> Race:
    own, theirs, timm = OurNetworks(workload, runtime), TheirNetworks(workload, runtime), TimmNetworks(workload, runtime)
    contestants = ours.inference(own, runtime)
    contestants += with_transformers.inference(theirs, runtime) if "transformers" in rivals else []
    contestants += with_timm.inference(timm, runtime) if "timm" in rivals else []
    flops = {precision_name(runtime.autocast): network_flops(workload.classifier_config).forward}
    return _of_classifiers("inference", workload, contestants, flops, own, theirs, timm)


def _of_classifiers(
    job: BenchJob,
    workload: Workload,
    contestants: Sequence[Contestant],
    flops: Flops,
    own: OurNetworks,
    theirs: TheirNetworks,
    timm: TimmNetworks,
) -> Race:
    """A race in which everybody does the same work on one network."""
    names = [contestant.name for contestant in contestants]
    outputs = {TRANSFORMERS: lambda: theirs.class_outputs(), TIMM: lambda: timm.class_outputs()}
    return Race(
        job=job,
        pictures=workload.batch_size,
        contestants=contestants,
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


def _together(*parts: Flops) -> Flops:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
