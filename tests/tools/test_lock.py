"""The lock file holds what pyproject.toml asks for, by hashes, and CI installs nothing else."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PLACES = [
    {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": system, "platform_system": name}
    for version in ("3.11", "3.12", "3.13")
    for system, name in (("linux", "Linux"), ("darwin", "Darwin"))
]
"""For what the file holds."""


@cache
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "tools" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked() -> list[tuple[Requirement, str]]:
    """The packages of the file, each with what follows on its lines."""
    text = re.sub(r"^ *#.*\n", "", tool().LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(Requirement(line.partition(" --hash=")[0]), line) for line in lines if line]


def wanted() -> list[Requirement]:
    """What pyproject.toml and the tool ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = (line for extra in tool().EXTRAS for line in project["project"]["optional-dependencies"][extra])
    return [
        Requirement(line)
        for line in [*project["project"]["dependencies"], *extras, *project["build-system"]["requires"], *tool().BESIDE]
    ]


def test_it_holds_all_that_is_asked_for_but_pytorch() -> None:
    found = locked()
    for place in PLACES:
        versions = {}
        for one, _ in found:
            if one.marker is None or one.marker.evaluate(place):
                assert canonicalize_name(one.name) not in versions, (one, place)
                versions[canonicalize_name(one.name)] = next(iter(one.specifier)).version
        for one in wanted():
            if not tool().PYTORCH.fullmatch(one.name):
                assert one.specifier.contains(versions[canonicalize_name(one.name)]), (one, place)
    assert not [one.name for one, _ in found if tool().PYTORCH.fullmatch(one.name)]


def test_every_package_has_one_version_and_hashes_and_no_place() -> None:
    for one, line in locked():
        assert [part.operator for part in one.specifier] == ["=="], line
        assert one.url is None
        assert re.fullmatch(r"[^#]*?( +--hash=sha256:[0-9a-f]{64})+", line), line
    assert "://" not in tool().LOCK.read_text(encoding="utf-8")
    assert not re.search(r"^ *-", "\n".join(line for _, line in locked()), re.MULTILINE)


def test_nothing_else_is_installed_for_ci() -> None:
    """A package that the Makefile names besides would come without a hash."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile[makefile.index("$(VENV)/.installed-dev:") :].partition("\n\n")[0]
    installed = [line.partition(" --disable-pip-version-check ")[2] for line in recipe.splitlines() if "pip install" in line]
    assert installed == [
        f"--require-hashes --no-deps --only-binary :all: -r {tool().LOCK.name}",
        "--no-warn-conflicts -r constraints.txt",
        "--no-deps --no-build-isolation -e .",
    ]
    pinned = [Requirement(line).name for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    assert pinned == ["torch"]
