"""Options of `beitkit doctor`."""

from __future__ import annotations

from beitkit.configs.bounds import PositiveFloat, config
from beitkit.configs.parts import Json


@config()
class DoctorRun:
    """Say what this machine has, how fast it multiplies, and what is missing or broken, with what to do about it.

    The exit code is 1 where something is broken: torch or a package that beitkit needs, or a GPU that torch cannot use.
    """

    seconds: PositiveFloat = 0.3
    """How long each device is measured."""
    json: Json = False
