"""The verbs: one table, which the command line and the Python functions share.

`beitkit.pretrain("photos", tokenizer="runs/tok", out="runs/pre", epochs=100, lr=1e-3)` does what `beitkit pretrain photos
--tokenizer runs/tok --out runs/pre --epochs 100 --lr 1e-3` does, and returns what the verb found out. Options with a prefix
are given as a config: `mask=MaskConfig(ratio=0.5)` for `--mask.ratio 0.5` (see `beitkit.configs`). With `recipe="NAME"` the
recipe's values take the place of the defaults; a config that is given replaces the recipe's as a whole.

To add a verb, make its room in `runs/` and add a row to `VERBS`. Nothing here imports torch until a verb is called.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from beitkit.errors import UserError
from beitkit.terminal import printed_harmless


class Entry(NamedTuple):
    """A verb: where it is, how it is typed, and how it runs."""

    room: str
    """Its folder below `beitkit.runs`."""
    options: str
    """The class that holds its options, in the room's `config.py`, which imports no torch."""
    example: str
    """Arguments that show its use."""
    summary: str
    """What it does, in a few words."""
    trains: bool = False
    """Whether it saves as it goes, so that the same command continues it."""
    is_shared: bool = False
    """Whether several processes can do it together."""
    takes_recipe: bool = False
    """Whether a recipe's values can take the place of its defaults."""
    run: str = "run.run"
    """The function that takes the config, as MODULE.FUNCTION in the room."""

    def config_class(self) -> type[Any]:
        """The class that holds its options."""
        return self._found(f"config.{self.options}")

    def function(self) -> Callable[[Any], Any]:
        """The function that takes the config, and reads no larger images than that allows; importing it imports torch."""
        return functools.partial(_limited, self._found(self.run))

    def _found(self, where: str) -> Any:
        module, _, name = where.partition(".")
        return getattr(importlib.import_module(f"beitkit.runs.{self.room}.{module}"), name)


VERBS = {
    "demo": Entry("demo", "DemoRun", "", "everything below on bundled images, in minutes", trains=True),
    "index": Entry("pack", "IndexRun", "photos/ --out photos.index", "list images in one mapped file", run="index.run"),
    "pack": Entry("pack", "PackRun", "photos/ --out shards", "copy images into tar shards"),
    "tokenizer": Entry(
        "tokenizer",
        "TokenizerRun",
        "photos/ --out runs/tok",
        "a visual token for each patch of your images",
        trains=True,
        is_shared=True,
    ),
    "tokenize": Entry(
        "tokenize",
        "TokenizeRun",
        "photos/ --tokenizer runs/tok --out tokens",
        "store the tokens of some views, to compute them once",
    ),
    "pretrain": Entry(
        "pretrain",
        "PretrainRun",
        "photos/ --tokenizer runs/tok --out runs/pre",
        "predict the visual tokens of masked patches",
        trains=True,
        is_shared=True,
        takes_recipe=True,
    ),
    "probe": Entry("probe", "ProbeRun", "labeled/ --model runs/pre", "judge the frozen features of every block"),
    "finetune": Entry(
        "finetune",
        "FinetuneRun",
        "labeled/ --model runs/pre --out runs/cls",
        "train a classifier from them",
        trains=True,
        is_shared=True,
        takes_recipe=True,
    ),
    "segment": Entry(
        "segment",
        "SegmentRun",
        "scenes/ --model runs/pre --out runs/seg",
        "train a network that names every pixel",
        trains=True,
        is_shared=True,
        takes_recipe=True,
    ),
    "evaluate": Entry("evaluate", "EvaluateRun", "labeled/ --model runs/cls", "measure it"),
    "predict": Entry("predict", "PredictRun", "new/ --model runs/cls --out p.csv", "name what new images show"),
    "embed": Entry("predict", "EmbedRun", "new/ --model runs/pre --out f.npy", "their features, of any block", run="embed.run"),
    "show": Entry("show", "ShowRun", "photos/ --model runs/pre --out sheet.html", "masks, tokens, attention, features, reasons"),
    "inspect": Entry(
        "checkpoints", "InspectRun", "beit_base_patch16_224_pt22k.pth", "what is this checkpoint?", run="run.inspect"
    ),
    "show-load": Entry("checkpoints", "ShowLoadRun", "beit.pth", "what becomes of each of its tensors", run="run.show_load"),
    "convert": Entry(
        "checkpoints",
        "ConvertRun",
        "beit.pth --to huggingface --out hf/",
        "official, transformers, timm and own, both ways",
        run="run.convert",
    ),
    "export": Entry(
        "checkpoints",
        "ExportRun",
        "--model runs/cls --format onnx --out m.onnx",
        "a program that runs without beitkit",
        run="run.export",
    ),
    "ablate": Entry(
        "ablate",
        "AblateRun",
        "photos/ labeled/ --tokenizer runs/tok",
        "what is each part of BEiT worth on your images?",
        trains=True,
    ),
    "verdict": Entry(
        "verdict",
        "VerdictRun",
        "labeled/ --from scratch runs/pre beit.pth",
        "which start is best, with simple methods beside",
        trains=True,
    ),
    "compare": Entry("compare", "CompareRun", "runs/a runs/b", "runs side by side: options, curves, results"),
    "recipes": Entry("recipes", "RecipesRun", "", "the published set-ups, which --recipe takes"),
    "plan": Entry(
        "plan", "PlanRun", "--recipe NAME --images 1_281_167 --gpus 8", "steps, memory, time and cost, before anything is spent"
    ),
}
"""All verbs by name, in the order in which one meets them."""


def option_names(config: type[Any]) -> dict[str, str]:
    """What the command line calls the fields of a verb's config, such as `--mask.min-block` for `mask.min_block`.

    The keys are the names by which messages call the fields (see `UserError`). Fields of flat parts, such as `lr`, have no
    prefix; positional arguments are named as `--help` names them, such as IMAGES for `images`.
    """
    from tyro.conf import Positional  # here, because the overview does without

    from beitkit.configs.parts import From

    hints = get_type_hints(config, include_extras=True)
    names: dict[str, str] = {}
    for field in fields(config):
        hint = hints[field.name]
        if _is_flat(hint):
            names |= option_names(get_args(hint)[0])
        elif Positional in get_args(hint):
            names[field.name] = field.name.upper()
        elif From in get_args(hint):
            names[field.name] = "--from"
        else:
            names[field.name] = f"--{field.name.replace('_', '-')}"
            inner = option_names(hint) if is_dataclass(hint) and isinstance(hint, type) else {}
            names |= {
                f"{field.name}.{name}": f"{names[field.name]}.{option.removeprefix('--')}" for name, option in inner.items()
            }
    return names


def _limited(run: Callable[[Any], Any], config: Any) -> Any:
    """What a verb does: its images no larger than its `read.max_pixels` and `read.max_memory`, and `read.cache` of them held."""
    from beitkit.configs.data import ReadConfig  # here, as they import what the overview does without
    from beitkit.data.budget import memory_up_to
    from beitkit.data.decoding.limit import reading_up_to

    read = getattr(config, "read", ReadConfig())
    with printed_harmless(), reading_up_to(read), memory_up_to(getattr(read, "cache", ReadConfig().cache)):
        return run(config)


class Verb:
    """A verb that is called like a function."""

    def __init__(self, name: str) -> None:
        """`name` is the verb's on the command line."""
        self._entry = VERBS[name]
        self.__name__ = self.__qualname__ = name.replace("-", "_")
        self._config = config = self._entry.config_class()
        self.__doc__ = config.__doc__
        hints = get_type_hints(config, include_extras=True)
        self._hints = {key: {hint, *get_args(hint)} for key, hint in hints.items()}
        self._flat = {key: get_args(hint)[0] for key, hint in hints.items() if _is_flat(hint)}
        self._home = {option.name: part for part, group in self._flat.items() for option in fields(group)}
        self.__signature__ = self._signature()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the verb; wrong options and values raise `UserError`."""
        for name in options:
            if name not in self.__signature__.parameters:
                close = difflib.get_close_matches(name, self.__signature__.parameters, n=1)
                raise UserError(f"{self.__name__} has no option {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        try:
            given = self.__signature__.bind(*args, **options).arguments
        except TypeError as error:
            raise UserError(f"{self.__name__}: {error}") from None
        own = {key: _with_paths(value, self._hints.get(key, set())) for key, value in given.items()}
        parts: dict[str, Any] = {}
        for key in [key for key in own if key in self._home]:
            parts.setdefault(self._home[key], {})[key] = own.pop(key)
        name = given.get("recipe") if self._entry.takes_recipe else None
        config = self._config(**own) if name is None else self._from_recipe(name, own, parts.get("train", {}))
        config = replace(config, **{part: replace(getattr(config, part), **changed) for part, changed in parts.items()})
        return self._entry.function()(config)

    def _from_recipe(self, name: str, own: dict[str, Any], train: dict[str, Any]) -> Any:
        """A recipe's config with the options that are given in place of its own."""
        from beitkit.runs.recipes.table import recipe_named  # here, because the table of verbs is read by --help

        recipe = recipe_named(name, self.__name__)
        if missing := [path for path in recipe.paths if path not in own]:
            raise UserError(f"{self.__name__}: the recipe {name!r} needs {' and '.join(missing)}")
        return replace(recipe.config_without(train), **own)

    def _signature(self) -> Signature:
        parameters = []
        for key, parameter in signature(self._config).parameters.items():
            if key not in self._flat:
                parameters.append(parameter)
                continue
            parameters += [
                parameter.replace(name=option.name, default=getattr(parameter.default, option.name), annotation=option.type)
                for option in fields(self._flat[key])
            ]
        return Signature(parameters)


def _is_flat(hint: Any) -> bool:
    """Whether the command line writes the options of this part without a prefix."""
    from beitkit.configs.parts import Flat  # here, because it imports tyro, and the overview does without

    return get_origin(hint) is Annotated and Flat in get_args(hint)


def _with_paths(value: Any, hints: set[Any]) -> Any:
    """An option's value with paths where it is typed as one or several; text will do for a path, and one path for several."""
    if tuple[Path, ...] in hints:
        return (Path(value),) if isinstance(value, str | Path) else tuple(map(Path, value))
    return Path(value) if Path in hints and value is not None else value
