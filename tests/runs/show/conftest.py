"""The images, networks and commands of the tests of `inference`."""

from tests.inference.conftest import command, world

__all__ = ["command", "world"]
