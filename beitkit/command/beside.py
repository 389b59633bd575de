"""Options of the command line alone, which no config holds and no run stores: `--config` and `--devices`."""

from __future__ import annotations

from typing import Literal

from beitkit.errors import UserError

CONFIG = "--config"
"""Of the training verbs: a file with options."""
DEVICES = "--devices"
"""Of the verbs that several processes do together: how many."""
Devices = int | Literal["all"]
TEXTS = {
    CONFIG: ("FILE", "Options from a run's config.json, or from TOML or YAML; those that are typed win."),
    DEVICES: ("N|all", "Processes that share the work on this machine, one on each GPU; torchrun and srun do without it."),
}
"""What stands behind each in a usage line, and what it does."""
OTHER_NAMES = ("gpus", "num_gpus", "n_gpus", "ngpus", "num_devices", "nproc_per_node", "num_processes")
"""What `--devices` is called elsewhere."""


def taken_out(arguments: list[str], name: str, example: str) -> tuple[list[str], str | None]:
    """The arguments without an option, and its value; None where it is not given.

    Raises:
        UserError: if it has no value or is given twice; `example` says what it expects.
    """
    places = [place for place, argument in enumerate(arguments) if argument.split("=", 1)[0] == name]
    if not places:
        return arguments, None
    place = places[0]
    _, is_joined, value = arguments[place].partition("=")
    rest = arguments[:place] + arguments[place + (1 if is_joined else 2) :]
    value = value or next(iter(arguments[place + 1 : place + 2]), "")
    if len(places) > 1 or not value or value.startswith("--"):
        raise UserError(f"{name} needs {example}")
    return rest, value


def devices_taken_out(arguments: list[str]) -> tuple[list[str], Devices | None]:
    """The arguments without `--devices`, and how many it asks for; None where it is not given.

    Raises:
        UserError: for anything but a number of processes, or all, or for what it is called elsewhere.
    """
    for name in (argument.split("=", 1)[0] for argument in arguments):
        if name.startswith("--") and name[2:].replace("-", "_") in OTHER_NAMES:
            raise UserError(f"there is no option {name}, it is {DEVICES} here")
    rest, value = taken_out(arguments, DEVICES, "a number of processes, or all for one on each GPU")
    if value is None or value == "all":
        return rest, value
    if not value.isdecimal() or not value.isascii() or not 0 < int(value) < 10_000:
        raise UserError(f"{DEVICES} expects a number of processes from 1 on, or all for one on each GPU, got {value!r}")
    return rest, int(value)
