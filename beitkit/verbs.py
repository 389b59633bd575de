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
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from beitkit.errors import UserError


class Entry(NamedTuple):
    """A verb: where it is, how it is typed, and how it runs."""

    config: str
    """The class that holds its options, as "module:class" below `beitkit.runs`; its module imports no torch."""
    run: str
    """The function that takes the config, as "module:function" below `beitkit.runs`."""
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

    def config_class(self) -> type[Any]:
        """The class that holds its options."""
        return _named(self.config)

    def function(self) -> Callable[[Any], Any]:
        """The function that takes the config, and reads no larger images than that allows; importing it imports torch."""
        return functools.partial(_limited, _named(self.run))


VERBS = {
    "demo": Entry("demo.config:DemoRun", "demo.run:run", "", "everything below on bundled images, in minutes", trains=True),
    "index": Entry("pack.config:IndexRun", "pack.index:run", "photos/ --out photos.index", "list images in one mapped file"),
    "pack": Entry("pack.config:PackRun", "pack.run:run", "photos/ --out shards", "copy images into tar shards"),
    "tokenizer": Entry(
        "tokenizer.config:TokenizerRun",
        "tokenizer.run:run",
        "photos/ --out runs/tok",
        "train a discrete VAE on your images",
        trains=True,
        is_shared=True,
    ),
    "tokenize": Entry(
        "tokenize.config:TokenizeRun",
        "tokenize.run:run",
        "photos/ --tokenizer runs/tok --out tokens",
        "store the tokens of some views, to compute them once",
    ),
    "pretrain": Entry(
        "pretrain.config:PretrainRun",
        "pretrain.run:run",
        "photos/ --tokenizer runs/tok --out runs/pre",
        "predict the visual tokens of masked patches",
        trains=True,
        is_shared=True,
        takes_recipe=True,
    ),
    "probe": Entry(
        "probe.config:ProbeRun", "probe.run:run", "labeled/ --model runs/pre", "judge the frozen features of every block"
    ),
    "finetune": Entry(
        "finetune.config:FinetuneRun",
        "finetune.run:run",
        "labeled/ --model runs/pre --out runs/cls",
        "train a classifier from them",
        trains=True,
        is_shared=True,
        takes_recipe=True,
    ),
    "segment": Entry(
        "segment.config:SegmentRun",
        "segment.run:run",
        "scenes/ --model runs/pre --out runs/seg",
        "train a network that names every pixel",
        trains=True,
        is_shared=True,
        takes_recipe=True,
    ),
    "evaluate": Entry("evaluate.config:EvaluateRun", "evaluate.run:run", "labeled/ --model runs/cls", "measure it"),
    "predict": Entry(
        "predict.config:PredictRun", "predict.run:run", "new/ --model runs/cls --out p.csv", "name what new images show"
    ),
    "embed": Entry(
        "predict.config:EmbedRun", "predict.embed:run", "new/ --model runs/pre --out f.npy", "their features, of any block"
    ),
    "inspect": Entry(
        "checkpoints.config:InspectRun",
        "checkpoints.run:inspect",
        "beit_base_patch16_224_pt22k.pth",
        "what is this checkpoint?",
    ),
    "show-load": Entry(
        "checkpoints.config:ShowLoadRun", "checkpoints.run:show_load", "beit.pth", "what becomes of each of its tensors"
    ),
    "convert": Entry(
        "checkpoints.config:ConvertRun",
        "checkpoints.run:convert",
        "beit.pth --to huggingface --out hf/",
        "official, transformers, timm and own, both ways",
    ),
    "export": Entry(
        "checkpoints.config:ExportRun",
        "checkpoints.run:export",
        "--model runs/cls --format onnx --out m.onnx",
        "a program that runs without beitkit",
    ),
    "ablate": Entry(
        "ablate.config:AblateRun",
        "ablate.run:run",
        "photos/ labeled/ --tokenizer runs/tok",
        "what is each part of BEiT worth on your images?",
        trains=True,
    ),
    "recipes": Entry("recipes.config:RecipesRun", "recipes.run:run", "", "the published set-ups, which --recipe takes"),
    "plan": Entry(
        "plan.config:PlanRun",
        "plan.run:run",
        "--recipe NAME --images 1_281_167 --gpus 8",
        "steps, memory, time and cost, before anything is spent",
    ),
}
"""All verbs by name, in the order in which one meets them."""


def option_names(config: type[Any]) -> dict[str, str]:
    """What the command line calls the fields of a verb's config, such as `--mask.min-block` for `mask.min_block`.

    The keys are the names by which messages call the fields (see `UserError`). Fields of flat parts, such as `lr`, have no
    prefix; positional arguments are named as `--help` names them, such as IMAGES for `images`.
    """
    from tyro.conf import Positional  # here, because the overview does without

    hints = get_type_hints(config, include_extras=True)
    names: dict[str, str] = {}
    for field in fields(config):
        hint = hints[field.name]
        if _is_flat(hint):
            names |= option_names(get_args(hint)[0])
        elif Positional in get_args(hint):
            names[field.name] = field.name.upper()
        else:
            names[field.name] = f"--{field.name.replace('_', '-')}"
            inner = option_names(hint) if is_dataclass(hint) and isinstance(hint, type) else {}
            names |= {
                f"{field.name}.{name}": f"{names[field.name]}.{option.removeprefix('--')}" for name, option in inner.items()
            }
    return names


class Verb:
    """A verb that is called like a function."""

    def __init__(self, name: str) -> None:
        """`name` is the verb's on the command line."""
        self._entry = VERBS[name]
        self.__name__ = self.__qualname__ = name.replace("-", "_")
        self._config = config = self._entry.config_class()
        self.__doc__ = config.__doc__
        hints = get_type_hints(config, include_extras=True)
        self._several = {key for key, hint in hints.items() if tuple[Path, ...] in {hint, *get_args(hint)}}
        self._paths = {key for key, hint in hints.items() if Path in {hint, *get_args(hint)}} - self._several
        self._flat = {key: hint for key, hint in hints.items() if _is_flat(hint)}
        self._home = {option.name: part for part, hint in self._flat.items() for option in fields(get_args(hint)[0])}
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
        own: dict[str, Any] = {
            key: Path(value) if key in self._paths and value is not None else value for key, value in given.items()
        }
        own |= {key: _as_paths(own[key]) for key in self._several & own.keys()}
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
                for option in fields(get_args(self._flat[key])[0])
            ]
        return Signature(parameters)


def _limited(run: Callable[[Any], Any], config: Any) -> Any:
    """What a verb does, its images being no larger than its `read.max_pixels`."""
    from beitkit.configs.data import ReadLimit  # here, as they import what the overview does without
    from beitkit.data.decoding.limit import pixels_up_to

    with pixels_up_to(getattr(config, "read", ReadLimit()).max_pixels):
        return run(config)


def _named(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(f"beitkit.runs.{module}"), name)


def _is_flat(hint: Any) -> bool:
    """Whether the command line writes the options of this part without a prefix."""
    from beitkit.configs.parts import Flat  # here, because it imports tyro, and the overview does without

    return get_origin(hint) is Annotated and Flat in get_args(hint)


def _as_paths(value: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    """One path, or several."""
    return (Path(value),) if isinstance(value, str | Path) else tuple(Path(one) for one in value)
