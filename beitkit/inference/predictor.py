"""`Predictor` and `Embedder`: picklable batch inference for Ray, Spark and other engines with worker processes.

A worker process loads the network at its first batch and keeps it.

    predictor = beitkit.Predictor("runs/cls")
    predictor({"path": ["a.jpg", "b.jpg"]})["predicted"]
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from beitkit.configs.data import Fit, ReadLimit
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.train import MachineConfig
from beitkit.contracts import ImageInput
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.decoding.limit import reading_up_to
from beitkit.data.reader import ImageReader
from beitkit.errors import UserError
from beitkit.inference.networks import Computation, Embedding, Probabilities, cast_weights_, source_of
from beitkit.inference.predictions import Naming
from beitkit.interop.kinds import Network
from beitkit.interop.load import load
from beitkit.nn.models import Classifier
from beitkit.nn.prediction import check_outputs
from beitkit.train.machine.runtime import Runtime, start_runtime

Column = NDArray[np.generic] | Sequence[ImageInput]
"""Values of one name in a batch, one for each image."""


class Loaded(NamedTuple):
    """A network on its device, and its image reader."""

    model: Network
    runtime: Runtime
    reader: ImageReader


@dataclass(frozen=True, kw_only=True)
class BatchComputation:
    """A computation on batches of paths or arrays, shared by `Predictor` and `Embedder`."""

    model: Path
    compute: Computation
    machine: MachineConfig = MachineConfig()
    read: ReadLimit = ReadLimit()
    fit: Fit | None = None
    """How images come to the network's shape; None takes what is stored with it."""

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, NDArray[np.generic]]:
        """The batch without `image`, `values` float32 (b, ...), NaN where an image cannot be read, and `error`, else empty.

        Raises:
            UserError: neither `path` nor `image` in the batch, an unsuitable checkpoint, or outputs that are not finite.
        """
        column = next((batch[name] for name in ("path", "image") if name in batch), None)
        if column is None:
            raise UserError(f"a batch needs the images as 'path' or 'image'; this one has {', '.join(batch) or 'nothing'}")
        loaded = self.loaded()
        errors = [""] * len(column)
        readable, pixels = [], []
        for place, image in enumerate(column):
            try:
                with reading_up_to(self.read):
                    pixels.append(loaded.reader.pixels(image))
                readable.append(place)
            except BrokenImage as broken:
                errors[place] = broken.reason
        values = np.full((len(column), *self.compute.shape(loaded.model)), np.nan, dtype=np.float32)
        if pixels:
            images = loaded.reader.normalized(torch.stack(pixels)).to(loaded.runtime.device)
            with torch.no_grad(), loaded.runtime.precision():
                outputs = self.compute(loaded.model, images).float().cpu()
            check_outputs(outputs, source_of(loaded.model))
            values[readable] = outputs.numpy()
        passed_on = {name: np.asarray(column) for name, column in batch.items() if name != "image"}
        return passed_on | {"values": values, "error": np.array(errors, dtype=object)}

    def loaded(self) -> Loaded:
        """The network, read once for each process."""
        return _loaded(self.model, self.machine, self.fit, self.model.stat().st_mtime_ns if self.model.exists() else 0)


def fitted(model: Network, fit: Fit | None) -> Network:
    """The network, whose images come to its shape in this way; None leaves it as it is."""
    preprocessing = model.config.preprocessing.shown(fit, None)
    model.config = replace(model.config, preprocessing=preprocessing)  # type: ignore[assignment] - of the same class
    return model


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, machine: MachineConfig, fit: Fit | None, modified: int) -> Loaded:
    """A network; `modified` is in the key, so that a checkpoint that was written anew is read anew."""
    model = fitted(load(path), fit)
    runtime = start_runtime(machine)
    cast_weights_(model.to(runtime.device), runtime.autocast)
    return Loaded(model, runtime, ImageReader.of(model.config.backbone, model.config.preprocessing))


class Predictor:
    """A classifier for batches of paths or arrays."""

    def __init__(
        self,
        model: str | Path,
        *,
        fit: Fit | None = None,
        inference: InferenceConfig = InferenceConfig(),
        machine: MachineConfig = MachineConfig(),
    ) -> None:
        """A predictor with the checkpoint `model`, read at the first batch; `machine` chooses device, precision and threads.

        `fit` says how images come to the network's shape, if not as is stored with it; `inference` over which views of an
        image logits are averaged (scales, flip, shift).
        """
        self._batches = BatchComputation(model=Path(model), compute=Probabilities(inference), machine=machine, fit=fit)

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, NDArray[np.generic]]:
        """The batch with its predictions.

        Args:
            batch: `path` (text or bytes) or `image` (arrays as `model.predict` takes them); other names are passed on.

        Returns:
            The batch without `image`, `predicted` (text), `probability` float32 (b), `probabilities` float32 (b, classes) in
            the order of the classes, and `error` (text): empty, or why an image cannot be read; the others are then empty and
            NaN.

        Raises:
            UserError: neither `path` nor `image` in the batch, or a checkpoint that is not a classifier.
        """
        result = self._batches(batch)
        model = self._batches.loaded().model
        assert isinstance(model, Classifier)
        naming, values = Naming.of(model.config, top=1), result.pop("values").astype(np.float32)
        return result | {
            "predicted": np.array([naming.predicted(row) for row in values], dtype=object),
            "probability": values.max(axis=1),
            "probabilities": values,
        }


class Embedder:
    """Features of batches of paths or arrays."""

    def __init__(
        self,
        model: str | Path,
        *,
        embedding: Embedding = Embedding(),
        fit: Fit | None = None,
        machine: MachineConfig = MachineConfig(),
    ) -> None:
        """An embedder with the checkpoint `model`, read at the first batch; see `Predictor`."""
        self._batches = BatchComputation(model=Path(model), compute=embedding, machine=machine, fit=fit)

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, NDArray[np.generic]]:
        """The batch with `features` float32 (b, ...) and `error`; see `Predictor` for what it takes, `Embedding` for shapes."""
        result = self._batches(batch)
        return result | {"features": result.pop("values")}
