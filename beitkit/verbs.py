"""The verbs: one table, which the command line and the Python functions share.

`beitkit.pretrain("photos", tokenizer="runs/tok", out="runs/pre", epochs=100, lr=1e-3)` does what `beitkit pretrain photos
--tokenizer runs/tok --out runs/pre --epochs 100 --lr 1e-3` does, and returns what the verb found out. Options with a prefix
are given as a config, `mask=MaskConfig(ratio=0.5)` for `--mask.ratio 0.5` (see `beitkit.configs`), or as a dict,
`mask={"ratio": 0.5}`; so `beitkit.pretrain(**config | {"out": "runs/again"})` repeats a run whose `config.json` was read.
With `recipe="NAME"` the recipe's values take the place of the defaults; a config that is given replaces the recipe's as a whole.

To add a verb, make its room in `runs/` and add a row to `VERBS`. Nothing here imports torch until a verb is called.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from inspect import Signature, cleandoc, signature
from numbers import Number
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from beitkit.command.beside import CONFIG, DEVICES
from beitkit.command.habits import meant
from beitkit.errors import UserError
from beitkit.terminal import only_answers, print_answer, printed_harmless
from beitkit.train.machine.launch import rank_from_environment


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
    common: str = ""
    """Fields of the options that `--help` shows besides those that have to be given."""
    own: str = ""
    """Fields that a Python caller may give an object for in place of a path (`runs.training.own.OwnParts`)."""
    run: str = "run.run"
    """The function that takes the config, as MODULE.FUNCTION in the room."""
    answer: str = ""
    """The function that makes of config and result what `--json` prints, below `beitkit.runs`; without it the result as it is."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Options of the command line alone that work for it."""
        return (CONFIG,) * self.trains + (DEVICES,) * self.is_shared

    def config_class(self) -> type[Any]:
        """The class that holds its options."""
        return self._found(f"config.{self.options}")

    def function(self) -> Callable[..., Any]:
        """The function that takes the config, and reads no larger images than that allows; asking for it imports torch."""
        return functools.partial(_limited, functools.partial(self._run, self._found(self.run)))

    def _run(self, run: Callable[..., Any], config: Any, **beside: Any) -> Any:
        """Run the verb; with `json` stdout gets what it found and nothing else."""
        if not config.json:
            return run(config, **beside)
        from beitkit.report.table import plain  # here, because the overview does without

        with only_answers():
            found = run(config, **beside)
            if rank_from_environment().rank == 0:
                content = found if not self.answer else _function(self.answer)(config, found)
                if content is not None:
                    print_answer(json.dumps(plain(content)))
        return found

    def _found(self, where: str) -> Any:
        return _function(f"{self.room}.{where}")


VERBS = {
    "demo": Entry(
        "demo",
        "DemoRun",
        "",
        "all of it on bundled images, in minutes",
        trains=True,
        common="out device threads",
        answer="demo.run.answer",
    ),
    "run": Entry(
        "pipeline",
        "PipelineRun",
        "photos/ --labels labeled/ --out runs/mine",
        "audit to exported model, with a verdict, within a time budget",
        trains=True,
        common="labels val budget init size seed device threads",
        answer="pipeline.run.answer",
    ),
    "audit": Entry(
        "audit",
        "AuditRun",
        "photos/",
        "check images: broken, odd, duplicate, leaked into validation",
        common="val out list near image_size patch",
    ),
    "index": Entry(
        "pack",
        "IndexRun",
        "photos/ --out photos.index",
        "write an index of images, in one file",
        run="index.run",
        common="labels",
        answer="pack.index.answer",
    ),
    "pack": Entry(
        "pack",
        "PackRun",
        "photos/ --out shards",
        "copy images into tar shards",
        common="labels shard_size split",
        answer="pack.run.answer",
    ),
    "tokenizer": Entry(
        "tokenizer",
        "TokenizerRun",
        "photos/ --out runs/tok",
        "make a tokenizer: a visual token for each patch",
        trains=True,
        is_shared=True,
        own="images",
        common="kind image_size epochs steps batch_size lr seed dvae.vocabulary dvae.stride dvae.geometry "
        "kmeans.vocabulary kmeans.stride channels value_range view.crop_scale device threads workers",
        answer="training.answer.answer",
    ),
    "tokenize": Entry(
        "tokenize",
        "TokenizeRun",
        "photos/ --tokenizer runs/tok --out tokens",
        "compute the tokens of stored views once",
        common="views image_size patch shard engine batch_size device workers",
        answer="tokenize.run.answer",
    ),
    "pretrain": Entry(
        "pretrain",
        "PretrainRun",
        "photos/ --tokenizer runs/tok --out runs/pre",
        "predict the visual tokens of masked patches",
        trains=True,
        is_shared=True,
        takes_recipe=True,
        own="images tokenizer augmentation",
        common="tokenizer init size image_size patch epochs steps batch_size lr seed labels recipe views mask.ratio "
        "mask.kind view.crop_scale loop.accumulate loop.save_every network.positions device precision threads "
        "workers",
        answer="training.answer.answer",
    ),
    "probe": Entry(
        "probe",
        "ProbeRun",
        "labeled/ --model runs/pre",
        "evaluate the frozen features of every block",
        own="images val",
        common="out val protocol limit device",
    ),
    "finetune": Entry(
        "finetune",
        "FinetuneRun",
        "labeled/ --model runs/pre --out runs/cls",
        "train a classifier",
        trains=True,
        is_shared=True,
        takes_recipe=True,
        own="images val augmentation",
        common="model scratch size image_size epochs steps batch_size lr seed labels val compare recipe freeze pooling "
        "augment.operations augment.mixup optim.layer_decay loop.ema device precision threads workers",
        answer="training.answer.answer",
    ),
    "segment": Entry(
        "segment",
        "SegmentRun",
        "scenes/ --model runs/pre --out runs/seg",
        "train a semantic segmentation model",
        trains=True,
        is_shared=True,
        takes_recipe=True,
        own="images val",
        common="model scratch size image_size head epochs steps batch_size lr seed val classes compare recipe freeze "
        "loss.class_weights inference.scales device precision threads workers",
        answer="training.answer.answer",
    ),
    "evaluate": Entry(
        "evaluate",
        "EvaluateRun",
        "labeled/ --model runs/cls",
        "measure trained models on labeled images",
        own="images",
        common="out image_size crop_share batch_size device",
        answer="evaluate.report.answer",
    ),
    "predict": Entry(
        "predict",
        "PredictRun",
        "new/ --model runs/cls --out p.csv",
        "predict the classes of new images, or of their pixels",
        own="inputs",
        common="out top batch_size shard engine device",
        answer="predict.run.answer",
    ),
    "embed": Entry(
        "predict",
        "EmbedRun",
        "new/ --model runs/pre --out f.npy",
        "write the features of images, from any block",
        run="embed.run",
        own="inputs",
        common="block pool dtype batch_size shard engine device",
        answer="predict.run.answer",
    ),
    "show": Entry(
        "show",
        "ShowRun",
        "photos/ --model runs/pre --out sheet.html",
        "draw masks, tokens, attention, features, Grad-CAM",
        common="tokenizer only count gallery neighbors block queries target seed fit device",
    ),
    "inspect": Entry(
        "checkpoints",
        "InspectRun",
        "beit_base_patch16_224_pt22k.pth",
        "describe a checkpoint",
        run="run.inspect",
        common="verbose",
        answer="checkpoints.run.inspect_answer",
    ),
    "show-load": Entry(
        "checkpoints",
        "ShowLoadRun",
        "beit.pth",
        "say what loading does with each tensor",
        run="run.show_load",
        common="task num_classes image_size",
        answer="checkpoints.run.show_load_answer",
    ),
    "convert": Entry(
        "checkpoints",
        "ConvertRun",
        "beit.pth --to huggingface --out hf/",
        "write it in another format (official, transformers, timm)",
        run="run.convert",
        common="dry_run verbose",
        answer="checkpoints.run.convert_answer",
    ),
    "export": Entry(
        "checkpoints",
        "ExportRun",
        "--model runs/cls --format onnx --out m.onnx",
        "write a model as ONNX, torch.export or another format",
        run="run.export",
        common="image_size push",
        answer="checkpoints.run.export_answer",
    ),
    "ablate": Entry(
        "ablate",
        "AblateRun",
        "photos/ labeled/ --tokenizer runs/tok",
        "measure what each part of BEiT adds on your images",
        trains=True,
        common="tokenizer variants seeds size image_size patch steps finetune_steps labels device threads",
        answer="ablate.run.answer",
    ),
    "verdict": Entry(
        "verdict",
        "VerdictRun",
        "labeled/ --from scratch runs/pre beit.pth",
        "find the best starting weights, with simple baselines",
        trains=True,
        common="labels seeds out size image_size val epochs steps lr floors probe device threads",
        answer="verdict.run.answer",
    ),
    "compare": Entry("compare", "CompareRun", "runs/a runs/b", "set runs side by side: options, curves, results", common="out"),
    "recipes": Entry(
        "recipes", "RecipesRun", "", "list the published set-ups, for --recipe", common="name all", answer="recipes.run.answer"
    ),
    "replay": Entry(
        "replay",
        "ReplayRun",
        "runs/pre --step 1200",
        "repeat steps of a run and compare the numbers",
    ),
    "plan": Entry(
        "plan",
        "PlanRun",
        "--recipe NAME --images 1_281_167 --gpus 8",
        "estimate steps, memory, time and cost of a run",
        common="recipe size image_size patch batch_size epochs steps gpus tokenizer views precision price",
        answer="plan.run.answer",
    ),
    "doctor": Entry(
        "doctor",
        "DoctorRun",
        "",
        "check this machine: what is missing, broken or slow",
        common="seconds",
        answer="doctor.run.answer",
    ),
}
"""All verbs by name, in the order in which one meets them."""


def _function(where: str) -> Any:
    module, _, name = where.rpartition(".")
    return getattr(importlib.import_module(f"beitkit.runs.{module}"), name)


def _limited(run: Callable[..., Any], config: Any, **beside: Any) -> Any:
    """What a verb does, with the limits of its `read`: how large an image may be, how many are held, how long they may take."""
    from beitkit.configs.data import ReadConfig  # here, as they import what the overview does without
    from beitkit.data.budget import memory_up_to
    from beitkit.data.decoding.limit import reading_up_to
    from beitkit.data.patience import patient_for

    read, default = getattr(config, "read", ReadConfig()), ReadConfig()
    held, patience = (getattr(read, name, getattr(default, name)) for name in ("cache", "timeout"))
    with printed_harmless(), reading_up_to(read), memory_up_to(held), patient_for(patience):
        return run(config, **beside)


def function_of(name: str) -> Callable[..., Any]:
    """The verb of this name, such as show-load, as a function, whose `help` lists its options."""
    verb = Verb(name)

    def call(*args: Any, **options: Any) -> Any:
        return verb(*args, **options)

    call.__name__ = call.__qualname__ = verb.name
    call.__module__ = "beitkit"
    call.__doc__ = verb.text()
    call.__signature__ = verb.signature  # type: ignore[attr-defined]
    return call


class Verb:
    """A verb that is called from Python."""

    def __init__(self, name: str) -> None:
        """`name` is the verb's on the command line."""
        self._entry = VERBS[name]
        self.name = name.replace("-", "_")
        self._config = config = self._entry.config_class()
        self._hints = get_type_hints(config, include_extras=True)
        self._flat = {key: get_args(hint)[0] for key, hint in self._hints.items() if _is_flat(hint)}
        self._home = {option.name: part for part, group in self._flat.items() for option in fields(group)}
        self.signature = self._signature()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the verb; wrong options and values raise `UserError`."""
        options = self._unpacked(options)
        for name in options:
            if name not in self.signature.parameters:
                hint = meant(name, self.signature.parameters)
                said = "" if hint is None else ", " + hint.replace("`", "'")
                raise UserError(f"{self.name} has no option {name!r}{said}")
        try:
            given = self.signature.bind(*args, **options).arguments
        except TypeError as error:
            raise UserError(f"{self.name}: {error}") from None
        several = {key for key in given if tuple[Path, ...] in (self._hints.get(key), *get_args(self._hints.get(key)))}
        given |= {key: _collected(value) for key, value in given.items() if key in several}
        own_fields = self._entry.own.split()
        objects = {key: value for key, value in given.items() if key in own_fields and _is_object(value, key in several)}
        beside: dict[str, Any] = {}
        if objects:
            from beitkit.runs.training.own import OwnParts  # here, because it imports torch

            beside["own"] = parts_given = OwnParts.of(objects)
            given |= parts_given.descriptions()
        own = {key: self._typed(key, value) for key, value in given.items()}
        parts: dict[str, Any] = {}
        for key in [key for key in own if key in self._home]:
            parts.setdefault(self._home[key], {})[key] = own.pop(key)
        name = given.get("recipe") if self._entry.takes_recipe else None
        config = self._config(**own) if name is None else self._from_recipe(name, own, parts.get("train", {}))
        config = replace(config, **{part: replace(getattr(config, part), **changed) for part, changed in parts.items()})
        return self._entry.function()(config, **beside)

    def text(self) -> str:
        """What the verb does, and its options with their meaning, as Python's `help` shows it."""
        from beitkit.command.options import docstrings  # here, because it imports tyro, and the overview does without

        texts = getattr(self._config, "TEXTS", {})
        lines = [cleandoc(self._config.__doc__ or ""), "", "Args:"]
        for name in self.signature.parameters:
            group = self._flat.get(self._home.get(name, ""), self._config)
            hint = self._hints.get(name)
            told = texts.get(name) or docstrings(group).get(name)
            if told is None and is_dataclass(hint) and isinstance(hint, type):
                inside = ", ".join(field.name for field in fields(hint))
                told = f"{(hint.__doc__ or '').splitlines()[0]} A {hint.__name__}: {inside}."
            lines.append(f"    {name}: {told or ''}".rstrip())
        return "\n".join(lines)

    def _unpacked(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options with flat parts, such as train={"lr": 1e-3} of a stored config, opened, and its verb left out."""
        if options.get("verb") == self._entry_name():
            options = {name: value for name, value in options.items() if name != "verb"}
        opened: dict[str, Any] = {}
        for name, value in options.items():
            opened |= value if name in self._flat and isinstance(value, dict) else {name: value}
        return opened

    def _entry_name(self) -> str:
        return self.name.replace("_", "-")

    def _typed(self, key: str, value: Any) -> Any:
        """An option's value as its config has it: paths for text, a config for a dict, tuples for lists."""
        hint = self._hints.get(key)
        if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
            from beitkit.configs.codec import changed_by_json  # here, because most calls do without

            return changed_by_json(self.signature.parameters[key].default, value, key)
        hints = {hint, *get_args(hint)}
        self._refuse_object(key, value, hints)
        return _with_paths(tuple(value) if isinstance(value, list) else value, hints)

    def _refuse_object(self, key: str, value: Any, hints: set[Any]) -> None:
        """Raise a `UserError` for an object in the place of paths, or of a number, that says which verbs take one there."""
        takes_several = tuple[Path, ...] in hints
        if takes_several or Path in hints:
            expected, is_wrong = "paths" if takes_several else "a path", _is_object(value, takes_several)
        else:
            expected, is_wrong = "a number", bool(hints & {int, float}) and not isinstance(value, Number)
        if is_wrong:
            takers = [name for name, entry in VERBS.items() if key in entry.own.split()]
            hint = f"; an object in its place is for {', '.join(takers)}" if takers and not isinstance(value, str) else ""
            raise UserError(f"{self.name}: `{key}` must be {expected}, got a {type(value).__name__}{hint}")

    def _from_recipe(self, name: str, own: dict[str, Any], train: dict[str, Any]) -> Any:
        """A recipe's config with the options that are given in place of its own."""
        from beitkit.runs.recipes.table import recipe_named  # here, because the table of verbs is read by --help

        recipe = recipe_named(name, self.name)
        if missing := [path for path in recipe.paths if path not in own]:
            raise UserError(f"{self.name}: the recipe {name!r} needs {' and '.join(missing)}")
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


PATHS = str | os.PathLike
"""What a path may be given as."""


def _is_object(value: object, takes_several: bool) -> bool:
    """Whether an option's value is neither left out nor a path nor text, nor several of these where it takes several."""
    if takes_several and isinstance(value, Iterable) and all(isinstance(one, PATHS) for one in value):
        return False
    return value is not None and not isinstance(value, PATHS)


def _collected(value: Any) -> Any:
    """An iterator over paths, such as that of `Path.glob`, as a tuple of them; anything else as it is."""
    if not isinstance(value, Iterator):
        return value
    first = tuple(itertools.islice(value, 1))
    return value if first and not isinstance(first[0], PATHS) else (*first, *value)


def _is_flat(hint: Any) -> bool:
    """Whether the command line writes the options of this part without a prefix."""
    from beitkit.configs.parts import Flat  # here, because it imports tyro, and the overview does without

    return get_origin(hint) is Annotated and Flat in get_args(hint)


def _with_paths(value: Any, hints: set[Any]) -> Any:
    """An option's value with paths where it is typed as one or several; text will do for a path, and one path for several."""
    if tuple[Path, ...] in hints:
        return (Path(value),) if isinstance(value, str | Path) else tuple(map(Path, value))
    return Path(value) if Path in hints and value is not None else value
