"""Which packages are there, as beitkit's own metadata asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?:>=\s*([0-9.]+))?")
EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")
USES = {
    "dicom": "DICOM images",
    "heic": "the HEIC images of phones",
    "mlflow": "--log mlflow",
    "onnx": "export to ONNX",
    "parquet": "Parquet files of images and of results",
    "ray": "predictions and tokens on a Ray cluster",
    "remote": "archives behind http",
    "tensorboard": "--log tensorboard",
    "tiff": "compressed TIFF of more than 8 bits",
    "trackio": "--log trackio",
    "wandb": "--log wandb",
}
"""What extras are for; those that only developers need are not here."""


class Package(NamedTuple):
    """A package that is asked for."""

    name: str
    version: str | None
    """None where it is not there."""
    least: str | None
    """The lowest version that will do."""

    @property
    def is_fit(self) -> bool:
        """Whether it is there, and new enough."""
        return self.version is not None and (self.least is None or _numbers(self.version) >= _numbers(self.least))


class Extra(NamedTuple):
    """What `pip install 'beitkit[NAME]'` brings."""

    name: str
    use: str
    missing: tuple[str, ...]
    """Packages that are not there; none where it is installed."""


def version_of(name: str) -> str | None:
    """The version of an installed package; None without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def needed(
    requirements: list[str], found: Callable[[str], str | None] = version_of
) -> tuple[tuple[Package, ...], tuple[Extra, ...]]:
    """The packages and the extras of `importlib.metadata.requires`."""
    packages: list[Package] = []
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        if match is None:
            continue
        package = Package(match[1], found(match[1]), match[2])
        extra = EXTRA.search(requirement)
        if extra is None:
            packages.append(package)
        elif extra[1] in USES:
            missing.setdefault(extra[1], []).extend([] if package.is_fit else [package.name])
    return tuple(packages), tuple(Extra(name, USES[name], tuple(names)) for name, names in sorted(missing.items()))


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
