"""A configuration file for a command: a run's config.json as it is, or TOML, YAML or JSON by hand.

What the file says is put in front of the command as options, so it is checked as if it had been typed, and what is typed wins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from beitkit.command.habits import meant
from beitkit.command.options import Option, options_of
from beitkit.configs.codec import as_json, flat, short
from beitkit.errors import UserError, refuse_given
from beitkit.files import MOST_OWN, parse_json, read_regular, why

ENDINGS = (".json", ".toml", ".yaml", ".yml")
EITHER_OR = (("epochs", "steps"), ("optim.warmup_epochs", "optim.warmup_steps"))
"""Of these the file's are left out when the command gives the other."""


def arguments_of(path: Path, verb: str, config: type[Any], given: Collection[str], positionals: int) -> list[str]:
    """The arguments that a file stands for, those left out that the command gives itself.

    Args:
        path: .json, .toml, .yaml or .yml; nested, or with dotted keys.
        verb: whose options they are; a run's own file says of which verb it is.
        config: the class that holds the verb's options.
        given: options that the command has, as typed.
        positionals: how many inputs it has.

    Raises:
        UserError: for a file that cannot be read, of another verb, or with an option that there is not.
    """
    values = read_config(path)
    if (made := values.pop("verb", verb)) != verb:
        raise UserError(f"{path} is the config of a run of beitkit {short(made)}, not of beitkit {verb}")
    options = {key: option for option in options_of(config) for key in (option.field, option.path)}
    chosen = {_found(path, verb, key, value, options): value for key, value in flat(values).items()}
    mine = {option.field for option in options.values() if option.name in given}
    for one, other in EITHER_OR:
        mine |= {other} if one in mine else {one} if other in mine else set()
    has_recipe = any(option.field == "recipe" and value is not None for option, value in chosen.items()) or "--recipe" in given
    inputs = [option for option in options_of(config) if option.is_positional][positionals:]
    arguments = [str(chosen[option]) for option in inputs if option in chosen]
    for option, value in chosen.items():
        if not option.is_positional and option.field not in mine:
            arguments += _typed(path, option, value, is_needed=has_recipe)
    return arguments


def _found(path: Path, verb: str, key: str, value: object, options: dict[str, Option]) -> Option:
    name = key.replace("-", "_")
    if name in options:
        return options[name]
    refuse_given(value)  # in a field that the command line does not have
    hint = meant(name, options)
    raise UserError(f"{path}: beitkit {verb} has no option {short(key)}" + (f", {hint}" if hint else ""))


def _typed(path: Path, option: Option, value: Any, *, is_needed: bool) -> list[str]:
    """The arguments that set an option to a value of the file; none where that is its default, which a recipe may replace."""
    is_default = not option.is_required and as_json(option.default) == value
    if is_default and (isinstance(value, bool) or not is_needed):
        return []
    if isinstance(value, bool):
        if option.kind is bool and option.default is True:
            return [option.name]
        if value and isinstance(option.default, bool):
            return [option.name]
        raise UserError(f"{path}: `{option.field}` is {str(value).lower()}; expected {option.metavar or 'true or false'}")
    if isinstance(value, list):
        return [option.name, *(_word(path, option, item) for item in value)]
    return [f"{option.name}={_word(path, option, value)}"]


def _word(path: Path, option: Option, value: Any) -> str:
    if value is None or isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{path}: `{option.field}` must be {option.metavar or 'true or false'}, got {short(value)}")


def read_config(path: Path) -> dict[str, Any]:
    """What a configuration file says, nested.

    Raises:
        UserError: with the file's name, for one that is not there, is damaged, or holds something else.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path} must be a configuration file that ends in {', '.join(ENDINGS)}")
    try:
        text = read_regular(path, MOST_OWN).decode("utf-8")
        values = _parsed(text, path.suffix.lower())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a configuration ({why(error)}); expected options of a verb") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must hold options and their values, got {short(values)}")
    return values


def _parsed(text: str, ending: str) -> Any:
    if ending == ".json":
        return parse_json(text)
    try:
        return tomllib.loads(text) if ending == ".toml" else _parsed_yaml(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _parsed_yaml(text: str) -> Any:
    import yaml  # here, because most commands do without

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has an alias (*name); write the value out")  # a few of them can stand for billions of values
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
