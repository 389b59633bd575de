"""The verbs of the command line as Python functions: same names, same options.

`beitkit.pretrain("photos", tokenizer="runs/tok", out="runs/pre", epochs=100, lr=1e-3)` does what `beitkit pretrain photos
--tokenizer runs/tok --out runs/pre --epochs 100 --lr 1e-3` does, and returns what the verb found out. Options with a prefix
are given as a config: `mask=MaskConfig(ratio=0.5)` for `--mask.ratio 0.5` (see `beitkit.configs`). With `recipe="NAME"` the
recipe's values take the place of the defaults; a config that is given replaces the recipe's as a whole.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from beitkit.configs import verbs
from beitkit.errors import UserError
from beitkit.runs import convert as convert_run
from beitkit.runs import export as export_run
from beitkit.runs import inspect as inspect_run
from beitkit.runs import show_load as show_load_run
from beitkit.runs.ablate import run as ablate_run
from beitkit.runs.demo import run as demo_run
from beitkit.runs.evaluate import run as evaluate_run
from beitkit.runs.finetune import run as finetune_run
from beitkit.runs.pack import index as index_run
from beitkit.runs.pack import run as pack_run
from beitkit.runs.plan import run as plan_run
from beitkit.runs.predict import embed as embed_run
from beitkit.runs.predict import run as predict_run
from beitkit.runs.pretrain import run as pretrain_run
from beitkit.runs.probe import run as probe_run
from beitkit.runs.recipes import run as recipes_run
from beitkit.runs.recipes.table import recipe_named, started_from
from beitkit.runs.segment import run as segment_run
from beitkit.runs.tokenize import run as tokenize_run
from beitkit.runs.tokenizer import run as tokenizer_run

Config = TypeVar("Config")
Result = TypeVar("Result")


class Verb(Generic[Config, Result]):
    """A verb that is called like a function."""

    def __init__(self, name: str, config: type[Config], run: Callable[[Config], Result]) -> None:
        functools.update_wrapper(self, run, assigned=("__doc__",), updated=())
        self.__name__ = self.__qualname__ = name
        self._config = config
        self._run = run
        hints = get_type_hints(config, include_extras=True)
        self._several = {key for key, hint in hints.items() if tuple[Path, ...] in {hint, *get_args(hint)}}
        self._paths = {key for key, hint in hints.items() if Path in {hint, *get_args(hint)}} - self._several
        # Parts whose options the command line writes without a prefix.
        self._flat = {key: hint for key, hint in hints.items() if get_origin(hint) is Annotated and verbs.Flat in get_args(hint)}
        self._home = {option.name: part for part, hint in self._flat.items() for option in fields(get_args(hint)[0])}
        self.__signature__ = self._signature()

    def __call__(self, *args: Any, **options: Any) -> Result:
        """Run the verb; wrong options and values raise `UserError`."""
        for name in options:
            if name not in self.__signature__.parameters:
                close = difflib.get_close_matches(name, self.__signature__.parameters, n=1)
                raise UserError(f"{self.__name__} has no option {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        try:
            given = self.__signature__.bind(*args, **options).arguments
        except TypeError as error:
            raise UserError(f"{self.__name__}: {error}") from None
        own: dict[str, Any] = {
            key: Path(value) if key in self._paths and value is not None else value for key, value in given.items()
        }
        own |= {key: _as_paths(own[key]) for key in self._several & own.keys()}
        parts: dict[str, Any] = {}
        for key in [key for key in own if key in self._home]:
            parts.setdefault(self._home[key], {})[key] = own.pop(key)
        name = given.get("recipe")
        if name is None or "train" not in self._flat:  # `plan` takes a recipe's name without being a run of it
            config = self._config(**own)
        else:
            started = started_from(name, self.__name__, parts.get("train", {}))
            if missing := [path for path in recipe_named(name).paths if path not in own]:
                raise UserError(f"{self.__name__}: the recipe {name!r} needs {' and '.join(missing)}")
            config = replace(started, **own)
        return self._run(replace(config, **{part: replace(getattr(config, part), **changed) for part, changed in parts.items()}))  # type: ignore[type-var]

    def _signature(self) -> Signature:
        parameters = []
        for key, parameter in signature(self._config).parameters.items():
            if key not in self._flat:
                parameters.append(parameter)
                continue
            parameters += [
                parameter.replace(name=option.name, default=getattr(parameter.default, option.name), annotation=option.type)
                for option in fields(get_args(self._flat[key])[0])
            ]
        return Signature(parameters)


def _as_paths(value: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    """One path, or several."""
    return (Path(value),) if isinstance(value, str | Path) else tuple(Path(one) for one in value)


demo = Verb("demo", verbs.DemoRun, demo_run.run)
index = Verb("index", verbs.IndexRun, index_run.run)
pack = Verb("pack", verbs.PackRun, pack_run.run)
tokenizer = Verb("tokenizer", verbs.TokenizerRun, tokenizer_run.run)
tokenize = Verb("tokenize", verbs.TokenizeRun, tokenize_run.run)
pretrain = Verb("pretrain", verbs.PretrainRun, pretrain_run.run)
finetune = Verb("finetune", verbs.FinetuneRun, finetune_run.run)
probe = Verb("probe", verbs.ProbeRun, probe_run.run)
segment = Verb("segment", verbs.SegmentRun, segment_run.run)
evaluate = Verb("evaluate", verbs.EvaluateRun, evaluate_run.run)
plan = Verb("plan", verbs.PlanRun, plan_run.run)
predict = Verb("predict", verbs.PredictRun, predict_run.run)
embed = Verb("embed", verbs.EmbedRun, embed_run.run)
inspect = Verb("inspect", verbs.InspectRun, inspect_run.run)
show_load = Verb("show_load", verbs.ShowLoadRun, show_load_run.run)
convert = Verb("convert", verbs.ConvertRun, convert_run.run)
export = Verb("export", verbs.ExportRun, export_run.run)
recipes = Verb("recipes", verbs.RecipesRun, recipes_run.run)
ablate = Verb("ablate", verbs.AblateRun, ablate_run.run)
