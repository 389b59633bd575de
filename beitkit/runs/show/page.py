"""The page of `beitkit show`, whose sheets are PNG files as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from beitkit.report.document import Report
from beitkit.report.images import CELL, png_bytes, sheet
from beitkit.system import write_atomically


class SheetPage(Report):
    """A report that remembers its sheets, and writes them beside itself."""

    def __init__(self, title: str, subtitle: str, out: Path) -> None:
        super().__init__(title, subtitle)
        self.out = out
        self.files: list[Path] = []
        """The sheets that have been written."""

    def sheet(self, name: str, columns: Mapping[str, Float[Tensor, "r c h w"]], caption: str, cell: int = CELL) -> None:
        """Images in labeled columns, on the page and as NAME.png."""
        self.images(columns, caption, cell=cell)
        path = self.out.with_suffix("") / f"{name}.png"
        write_atomically(path, png_bytes(sheet(columns, cell)))
        self.files.append(path)
