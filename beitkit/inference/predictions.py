"""Predictions as CSV, JSON lines or Parquet: a row for each image, in the order of the inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.model import ClassifierConfig
from beitkit.data.sources.list_rows import SEPARATOR
from beitkit.data.sources.parquet import pyarrow
from beitkit.errors import UserError
from beitkit.inference.part import OutputFile, ParquetFile, Rows, TextFile, csv_bytes, text_of


class PredictionRow(NamedTuple):
    """Prediction for one image."""

    path: Path
    predicted: str
    best: list[tuple[str, float]]
    """Classes and probabilities, best first; empty if the image cannot be read."""
    error: str


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How probabilities become predicted classes."""

    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    """Several labels an image: probability from which each class is predicted; None for one label."""
    top: int
    """How many classes a row has."""

    @classmethod
    def of(cls, config: ClassifierConfig, top: int) -> Naming:
        """The naming rule of a classifier."""
        thresholds = config.decisions if config.multilabel else None
        return cls(classes=config.classes, thresholds=thresholds, top=min(top, len(config.classes)))

    def predicted(self, probabilities: NDArray[np.float32]) -> str:
        """The predicted class, or classes between `|`; empty for NaN, and where no class of several is probable."""
        if np.isnan(probabilities).any():
            return ""
        best = np.argsort(-probabilities, kind="stable")
        # As float64: a threshold between two probabilities must not be rounded to one of them.
        chosen = best[:1] if self.thresholds is None else best[(probabilities >= np.array(self.thresholds, np.float64))[best]]
        return SEPARATOR.join(self.classes[index] for index in chosen)

    def rows(self, part: Rows, top: int) -> list[PredictionRow]:
        """The rows of a part, with `top` classes each."""
        rows = []
        for path, error, values in zip(part.paths, part.errors, part.values, strict=True):
            order = [] if error else np.argsort(-values, kind="stable")[:top]
            best = [(self.classes[index], float(f"{values[index]:.7g}")) for index in order]  # float32 has no more digits
            rows.append(PredictionRow(path, self.predicted(values), best, error))
        return rows


def prediction_table(out: Path, naming: Naming) -> OutputFile:
    """How predictions are written to a file of this name.

    Raises:
        UserError: another ending than .csv, .jsonl or .parquet, or .parquet without pyarrow.
    """
    if out.suffix == ".csv":
        pairs = [f"{name}_{rank}" for rank in range(1, naming.top + 1) for name in ("name", "probability")]
        header = csv_bytes([["path", "predicted", "probability", *pairs, "error"]])
        return TextFile(lambda part: _csv_lines(part, naming), header)
    if out.suffix == ".jsonl":
        return TextFile(lambda part: json_lines(part, naming))
    if out.suffix == ".parquet":
        pyarrow(out)
        return ParquetFile(lambda part: _arrow_table(part, naming), (len(naming.classes),))
    raise UserError(f"`out` must end in .csv, .jsonl or .parquet, got {out}")


def _csv_lines(part: Rows, naming: Naming) -> bytes:
    """path, predicted, probability, name_1, probability_1, and so on, error. Paths are written byte for byte."""
    rows = []
    for row in naming.rows(part, naming.top):
        pairs = [cell for guess in row.best for cell in guess] or [""] * (2 * naming.top)
        rows.append([str(row.path), row.predicted, pairs[1], *pairs, row.error])
    return csv_bytes(rows)


def json_lines(part: Rows, naming: Naming) -> bytes:
    """An object for each image: path, predicted, probability, probabilities of all classes (best first), error or null."""
    lines = []
    for row in naming.rows(part, len(naming.classes)):
        said: dict[str, Any] = {
            "path": str(row.path),
            "predicted": None if row.error else row.predicted,
            "probability": row.best[0][1] if row.best else None,
            "probabilities": dict(row.best),
            "error": row.error or None,
        }
        lines.append(json.dumps(said) + "\n")
    return "".join(lines).encode()


def _arrow_table(part: Rows, naming: Naming) -> Any:
    """path, predicted, probability, and the lists `names` and `probabilities` (best first), error; null where there is none."""
    arrow, rows = pyarrow(), naming.rows(part, naming.top)
    columns = {
        "path": ([text_of(row.path) for row in rows], arrow.string()),
        "predicted": ([None if row.error else row.predicted for row in rows], arrow.string()),
        "probability": ([row.best[0][1] if row.best else None for row in rows], arrow.float32()),
        "names": ([[name for name, _ in row.best] for row in rows], arrow.list_(arrow.string())),
        "probabilities": ([[share for _, share in row.best] for row in rows], arrow.list_(arrow.float32())),
        "error": ([row.error or None for row in rows], arrow.string()),
    }
    return arrow.table({name: arrow.array(values, kind) for name, (values, kind) in columns.items()})
