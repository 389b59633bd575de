"""`beitkit replay`: the same steps again, and whether they give the same numbers."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from beitkit.configs.codec import from_json, to_json
from beitkit.data.budget import memory_up_to
from beitkit.data.decoding.limit import reading_up_to
from beitkit.data.patience import patient_for
from beitkit.data.tokens.cache import CONTENTS, HEADER, STATES, TOKENS, TokenCache, read_key
from beitkit.errors import NumericalError, UserError
from beitkit.files import MOST_OWN, read_json, why
from beitkit.report.journal import read_journal
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.finetune.run import run as finetune
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.run import run as pretrain
from beitkit.runs.replay.config import ReplayRun
from beitkit.runs.segment.config import SegmentRun
from beitkit.runs.segment.run import run as segment
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.tokenizer.run import run as tokenizer
from beitkit.train.bad_steps import FOLDER, LIST, listed
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.loop import Replay, Replayed, replayed

VERBS: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
    "tokenizer": (TokenizerRun, tokenizer),
    "pretrain": (PretrainRun, pretrain),
    "finetune": (FinetuneRun, finetune),
    "segment": (SegmentRun, segment),
}
"""The verbs that step, by name."""
NOT_COPIED = {"model.json", "journal.jsonl", "report.html", "result.json", ".lock"}
"""What a finished run has and one that goes on has not, and what the copy writes itself."""
TIMED = {"images_per_second", "data_wait"}
"""Numbers of a journal that depend on the clock."""
ROUNDING = 1e-4
"""Relative difference up to which rounding explains it."""


@dataclass(frozen=True)
class ReplayResult:
    """What a step gave when it was computed again."""

    step: int
    loss: float
    grad_norm: float
    first_step: int
    """The first one that was computed."""
    compared: int
    """How many numbers of the run were; all were the same."""


def run(config: ReplayRun) -> ReplayResult:
    """Compute the steps up to `config.step` again, and on to the next one that was logged.

    Raises:
        UserError: the folder holds no run with steps, or not so many.
        NumericalError: a number is another one; the first is named.
    """
    verb, original = _read(config.run)
    recorded = _logged(config.run / "journal.jsonl")
    bad = next((line for line in listed(config.run / FOLDER / LIST) if line.step == config.step), None)
    last = config.step if bad is not None else min((step for step in recorded if step >= config.step), default=config.step)
    replay = Replay(last)
    with tempfile.TemporaryDirectory(prefix="beitkit-replay-") as scratch:
        copy = Path(scratch) / "run"
        first = _laid_out(config.run, copy, config.step, is_bad=bad is not None)
        again = replace(original, out=copy, **({"compare": None} if hasattr(original, "compare") else {}))
        if _has_own_tokens(getattr(original, "tokens", None), config.run, copy):
            again = replace(again, tokens=None)
            (copy / "config.json").write_text(json.dumps({"verb": verb, **to_json(again)}))
        with replayed(replay), _read_as(original), suppress(Replayed):
            VERBS[verb][1](again)
        now = _logged(copy / "journal.jsonl")
    result = replay.results[config.step - first]
    print(
        f"step {config.step}, from the state after step {first - 1}: loss {result.loss:.9g}, gradient norm {result.grad_norm:.9g}"
    )
    if bad is None:
        count = _compared({step: numbers for step, numbers in recorded.items() if step >= first}, now)
    else:
        _compare(config.step, "loss", bad.loss, result.loss)
        _compare(config.step, "grad_norm", bad.grad_norm, result.grad_norm)
        count = 2
        print(f"its {len(bad.images)} images: {', '.join(bad.images)}")
    if count:
        print(f"steps {first} to {last} gave the numbers of the run again ({count} were compared)")
    else:
        print("the run logged none of these steps, so there is nothing to compare")
    return ReplayResult(config.step, result.loss, result.grad_norm, first, count)


def _read(path: Path) -> tuple[str, Any]:
    """The verb and the config of a run."""
    recorded = path / "config.json"
    try:
        content = read_json(recorded, MOST_OWN)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no run ({recorded}: {why(error)}); give the folder of one") from None
    verb = content.pop("verb", None) if isinstance(content, dict) else None
    if not isinstance(verb, str) or verb not in VERBS:
        raise UserError(f"{recorded} is of {verb!r}; only runs of {', '.join(VERBS)} have steps that can be computed again")
    config = from_json(VERBS[verb][0], content, where=str(recorded))
    if getattr(config, "kind", "dvae") == "kmeans":
        raise UserError(f"{path} holds a tokenizer of k-means, which is made without steps")
    return verb, config


def _laid_out(run: Path, copy: Path, step: int, *, is_bad: bool) -> int:
    """A run that stands right before the step, as links to the files of another; returns its first step."""
    copy.mkdir()
    for entry in run.iterdir():
        if entry.is_file() and entry.name not in NOT_COPIED and entry.suffix not in (".safetensors", ".tmp"):
            shutil.copyfile(entry, copy / entry.name)
    if step == 1:
        return 1
    source = run / (FOLDER if is_bad else "checkpoints")
    stored = Checkpoints(source).newest(step - 1) if source.is_dir() else None
    if stored is None:
        return 1
    (copy / "checkpoints").mkdir()
    for file in source.glob(f"step-{stored.step:08d}*"):
        (copy / "checkpoints" / file.name).symlink_to(file.absolute())
    return stored.step + 1


def _has_own_tokens(given: Path | None, run: Path, copy: Path) -> bool:
    """Lay the token cache out, as a copy where the run has not filled it yet; returns whether that stands for a given one."""
    cache = given or run / "tokens"
    if not cache.is_dir():
        return False
    if TokenCache(cache, read_key(cache), is_writable=False).is_complete:
        if given is None:
            (copy / "tokens").symlink_to(cache.absolute())
        return False
    (copy / "tokens").mkdir()
    for name in (HEADER, CONTENTS, STATES, TOKENS):  # the run may go on meanwhile: what is marked by now is there later
        shutil.copyfile(cache / name, copy / "tokens" / name)
    return given is not None


@contextmanager
def _read_as(config: Any) -> Iterator[None]:
    """Images are read within the limits of that run."""
    with reading_up_to(config.read), memory_up_to(config.read.cache), patient_for(config.read.timeout):
        yield


def _logged(journal: Path) -> dict[int, dict[str, float]]:
    """What was logged of training, by step."""
    events = read_journal(journal) if journal.exists() else []
    return {event.step: event.numbers for event in events if event.kind == "train"}


def _compared(before: dict[int, dict[str, float]], now: dict[int, dict[str, float]]) -> int:
    """How many numbers are the same; raises a `NumericalError` at the first that is not."""
    count = 0
    for step in sorted(before.keys() & now.keys()):
        for name in sorted(before[step].keys() - TIMED):
            _compare(step, name, before[step][name], now[step].get(name, math.nan))
            count += 1
    return count


def _compare(step: int, name: str, before: float, now: float) -> None:
    if before == now or (math.isnan(before) and math.isnan(now)):
        return
    share = abs(now - before) / max(abs(before), abs(now))
    cause = "rounding may explain it: other hardware, threads, or number of processes" if share < ROUNDING else "not by rounding"
    raise NumericalError(
        f"the first difference is in step {step}: {name} was {before:.9g} and is {now:.9g} (by {share:.2g}; {cause})"
    )
