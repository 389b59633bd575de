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
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from inspect import Signature, cleandoc, signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from beitkit.command.beside import CONFIG, DEVICES
from beitkit.command.habits import meant
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
    common: str = ""
    """Fields of the options that `--help` shows besides those that have to be given."""
    run: str = "run.run"
    """The function that takes the config, as MODULE.FUNCTION in the room."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Options of the command line alone that work for it."""
        return (CONFIG,) * self.trains + (DEVICES,) * self.is_shared

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
    "demo": Entry(
        "demo", "DemoRun", "", "everything below on bundled images, in minutes", trains=True, common="out device threads"
    ),
    "run": Entry(
        "pipeline",
        "PipelineRun",
        "photos/ --labels labeled/ --out runs/mine",
        "audit to exported model, and a verdict, within a budget",
        trains=True,
        common="labels val budget init size seed device threads",
    ),
    "audit": Entry(
        "audit",
        "AuditRun",
        "photos/",
        "what is in there: broken, odd, twice there, in training and validation",
        common="val out list near image_size patch",
    ),
    "index": Entry(
        "pack", "IndexRun", "photos/ --out photos.index", "list images in one mapped file", run="index.run", common="labels"
    ),
    "pack": Entry("pack", "PackRun", "photos/ --out shards", "copy images into tar shards", common="labels shard_size split"),
    "tokenizer": Entry(
        "tokenizer",
        "TokenizerRun",
        "photos/ --out runs/tok",
        "a visual token for each patch of your images",
        trains=True,
        is_shared=True,
        common="kind image_size epochs steps batch_size lr seed dvae.vocabulary dvae.stride dvae.geometry "
        "kmeans.vocabulary kmeans.stride channels value_range view.crop_scale device threads workers",
    ),
    "tokenize": Entry(
        "tokenize",
        "TokenizeRun",
        "photos/ --tokenizer runs/tok --out tokens",
        "store the tokens of some views, to compute them once",
        common="views image_size patch shard engine batch_size device workers",
    ),
    "pretrain": Entry(
        "pretrain",
        "PretrainRun",
        "photos/ --tokenizer runs/tok --out runs/pre",
        "predict the visual tokens of masked patches",
        trains=True,
        is_shared=True,
        takes_recipe=True,
        common="tokenizer init size image_size patch epochs steps batch_size lr seed labels recipe views mask.ratio "
        "mask.kind view.crop_scale loop.accumulate loop.save_every network.positions device precision threads "
        "workers",
    ),
    "probe": Entry(
        "probe",
        "ProbeRun",
        "labeled/ --model runs/pre",
        "judge the frozen features of every block",
        common="out val protocol limit json device",
    ),
    "finetune": Entry(
        "finetune",
        "FinetuneRun",
        "labeled/ --model runs/pre --out runs/cls",
        "train a classifier from them",
        trains=True,
        is_shared=True,
        takes_recipe=True,
        common="model scratch size image_size epochs steps batch_size lr seed labels val compare recipe freeze pooling "
        "augment.operations augment.mixup optim.layer_decay loop.ema device precision threads workers",
    ),
    "segment": Entry(
        "segment",
        "SegmentRun",
        "scenes/ --model runs/pre --out runs/seg",
        "train a network that names every pixel",
        trains=True,
        is_shared=True,
        takes_recipe=True,
        common="model scratch size image_size head epochs steps batch_size lr seed val classes compare recipe freeze "
        "loss.class_weights inference.scales device precision threads workers",
    ),
    "evaluate": Entry(
        "evaluate",
        "EvaluateRun",
        "labeled/ --model runs/cls",
        "measure it",
        common="out image_size crop_share batch_size json device",
    ),
    "predict": Entry(
        "predict",
        "PredictRun",
        "new/ --model runs/cls --out p.csv",
        "name what new images show",
        common="out top batch_size shard engine json device",
    ),
    "embed": Entry(
        "predict",
        "EmbedRun",
        "new/ --model runs/pre --out f.npy",
        "their features, of any block",
        run="embed.run",
        common="block pool dtype batch_size shard engine device",
    ),
    "show": Entry(
        "show",
        "ShowRun",
        "photos/ --model runs/pre --out sheet.html",
        "masks, tokens, attention, features, reasons",
        common="tokenizer only count gallery neighbors block queries target seed fit device",
    ),
    "inspect": Entry(
        "checkpoints",
        "InspectRun",
        "beit_base_patch16_224_pt22k.pth",
        "what is this checkpoint?",
        run="run.inspect",
        common="verbose json",
    ),
    "show-load": Entry(
        "checkpoints",
        "ShowLoadRun",
        "beit.pth",
        "what becomes of each of its tensors",
        run="run.show_load",
        common="task num_classes image_size",
    ),
    "convert": Entry(
        "checkpoints",
        "ConvertRun",
        "beit.pth --to huggingface --out hf/",
        "official, transformers, timm and own, both ways",
        run="run.convert",
        common="dry_run verbose",
    ),
    "export": Entry(
        "checkpoints",
        "ExportRun",
        "--model runs/cls --format onnx --out m.onnx",
        "a program that runs without beitkit",
        run="run.export",
        common="image_size push",
    ),
    "ablate": Entry(
        "ablate",
        "AblateRun",
        "photos/ labeled/ --tokenizer runs/tok",
        "what is each part of BEiT worth on your images?",
        trains=True,
        common="tokenizer variants seeds size image_size patch steps finetune_steps labels device threads",
    ),
    "verdict": Entry(
        "verdict",
        "VerdictRun",
        "labeled/ --from scratch runs/pre beit.pth",
        "which start is best, with simple methods beside",
        trains=True,
        common="labels seeds out size image_size val epochs steps lr floors probe json device threads",
    ),
    "compare": Entry("compare", "CompareRun", "runs/a runs/b", "runs side by side: options, curves, results", common="out json"),
    "recipes": Entry("recipes", "RecipesRun", "", "the published set-ups, which --recipe takes", common="name json"),
    "replay": Entry(
        "replay",
        "ReplayRun",
        "runs/pre --step 1200",
        "the same steps of a run again: do they give the same numbers?",
    ),
    "plan": Entry(
        "plan",
        "PlanRun",
        "--recipe NAME --images 1_281_167 --gpus 8",
        "steps, memory, time and cost, before anything is spent",
        common="recipe size image_size patch batch_size epochs steps gpus tokenizer views precision price json",
    ),
    "doctor": Entry("doctor", "DoctorRun", "", "what this machine has, and what is missing or broken", common="seconds json"),
}
"""All verbs by name, in the order in which one meets them."""


def _limited(run: Callable[[Any], Any], config: Any) -> Any:
    """What a verb does, with the limits of its `read`: how large an image may be, how many are held, how long they may take."""
    from beitkit.configs.data import ReadConfig  # here, as they import what the overview does without
    from beitkit.data.budget import memory_up_to
    from beitkit.data.decoding.limit import reading_up_to
    from beitkit.data.patience import patient_for

    read, default = getattr(config, "read", ReadConfig()), ReadConfig()
    held, patience = (getattr(read, name, getattr(default, name)) for name in ("cache", "timeout"))
    with printed_harmless(), reading_up_to(read), memory_up_to(held), patient_for(patience):
        return run(config)


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
        own = {key: self._typed(key, value) for key, value in given.items()}
        parts: dict[str, Any] = {}
        for key in [key for key in own if key in self._home]:
            parts.setdefault(self._home[key], {})[key] = own.pop(key)
        name = given.get("recipe") if self._entry.takes_recipe else None
        config = self._config(**own) if name is None else self._from_recipe(name, own, parts.get("train", {}))
        config = replace(config, **{part: replace(getattr(config, part), **changed) for part, changed in parts.items()})
        return self._entry.function()(config)

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
        value = tuple(value) if isinstance(value, list) else value
        return _with_paths(value, {hint, *get_args(hint)})

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


def _is_flat(hint: Any) -> bool:
    """Whether the command line writes the options of this part without a prefix."""
    from beitkit.configs.parts import Flat  # here, because it imports tyro, and the overview does without

    return get_origin(hint) is Annotated and Flat in get_args(hint)


def _with_paths(value: Any, hints: set[Any]) -> Any:
    """An option's value with paths where it is typed as one or several; text will do for a path, and one path for several."""
    if tuple[Path, ...] in hints:
        return (Path(value),) if isinstance(value, str | Path) else tuple(map(Path, value))
    return Path(value) if Path in hints and value is not None else value
