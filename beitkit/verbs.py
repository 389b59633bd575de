"""The verbs of the command line as Python functions: same names, same fields.

`beitkit.pretrain("photos", tokenizer="runs/tok", out="runs/pre")` does what `beitkit pretrain photos --tokenizer runs/tok
--out runs/pre` does, and returns what the verb found out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from beitkit.configs import verbs
from beitkit.runs import demo as demo_run
from beitkit.runs import evaluate as evaluate_run
from beitkit.runs import finetune as finetune_run
from beitkit.runs import pretrain as pretrain_run
from beitkit.runs import probe as probe_run
from beitkit.runs import tokenizer as tokenizer_run

Fields = ParamSpec("Fields")
Config = TypeVar("Config")
Result = TypeVar("Result")


def _verb(name: str, config: Callable[Fields, Config], run: Callable[[Config], Result]) -> Callable[Fields, Result]:
    @functools.wraps(run)
    def call(*args: Fields.args, **kwargs: Fields.kwargs) -> Result:
        return run(config(*args, **kwargs))

    call.__name__ = call.__qualname__ = name
    call.__signature__ = inspect.signature(config)  # type: ignore[attr-defined]
    return call


demo = _verb("demo", verbs.DemoRun, demo_run.run)
tokenizer = _verb("tokenizer", verbs.TokenizerRun, tokenizer_run.run)
pretrain = _verb("pretrain", verbs.PretrainRun, pretrain_run.run)
finetune = _verb("finetune", verbs.FinetuneRun, finetune_run.run)
probe = _verb("probe", verbs.ProbeRun, probe_run.run)
evaluate = _verb("evaluate", verbs.EvaluateRun, evaluate_run.run)
