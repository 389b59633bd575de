"""Results by the actors of a Ray cluster; Ray is imported where it is used only."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from beitkit.data.files import PictureList
from beitkit.errors import UserError
from beitkit.inference.part import Part
from beitkit.inference.predictor import BatchComputation

BATCHES_PER_TABLE = 16
"""What an actor is given at a time."""


def ray_results(files: PictureList, computation: BatchComputation, *, batch_size: int) -> Iterator[Part]:
    """Results by actors on the Ray cluster of RAY_ADDRESS, else on one that is started on this machine and ended after.

    Each GPU of the cluster, or each `threads` cores where it has none, is given an actor with a network of its own. Files are
    opened by their absolute paths, so all machines have to see them, and the checkpoint, at the same place.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached or cannot read the checkpoint.
    """
    if files.members is not None:
        raise UserError(
            f"--engine ray opens pictures by their paths, but {files.root} holds archives; leave --engine out, and divide "
            "the work with --shard"
        )
    ray = import_ray()
    with _cluster(ray):
        available = ray.cluster_resources()
        cores = computation.machine.threads or 1
        gpus = int(available.get("GPU", 0)) if computation.machine.device in ("auto", "cuda") else 0
        actors = gpus or max(1, int(available.get("CPU", 1)) // cores)
        rows = _tables(files, batch_size * BATCHES_PER_TABLE)
        results = ray.data.from_arrow(rows).map_batches(
            BatchComputation,
            fn_constructor_kwargs={
                "model": computation.model.absolute(),
                "compute": computation.compute,
                "machine": computation.machine,
            },
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
            num_cpus=None if gpus else cores,
            num_gpus=1 if gpus else None,
        )
        try:
            for batch in results.iter_batches(batch_size=None, batch_format="numpy"):
                paths = [files.path(int(index)) for index in batch["index"]]
                values = np.array(batch["values"].tolist() if batch["values"].dtype == object else batch["values"])
                yield Part(paths, [str(error) for error in batch["error"]], values.astype(np.float32))
        except ray.exceptions.RayError as error:
            reason = getattr(error, "cause", None) or error
            raise UserError(f"--engine ray: {' '.join(str(reason).split())[-300:]}") from None


def import_ray() -> Any:
    """The module ray with ray.data.

    Raises:
        UserError: it is not installed.
    """
    # Read by Ray when it starts: nothing is reported to anybody, and its own processes' logs stay in their files.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine ray needs Ray; pip install 'beitkit[ray]', or leave --engine out") from None
    return ray


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connected to a cluster, with nothing printed; one that was connected before stays so."""
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            with _silent_stderr():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"--engine ray: the cluster cannot be reached ({reason}); set RAY_ADDRESS, or unset it") from None
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        if not was_connected:
            ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing on stderr, not even from C++, which says there that it was told to be silent."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _tables(files: PictureList, rows: int) -> list[Any]:
    """The pictures as tables (index, path) of so many rows; paths are bytes, for they need not be valid text."""
    import pyarrow  # comes with Ray

    tables = []
    for first in range(0, len(files), rows):
        indices = range(first, min(first + rows, len(files)))
        paths = [os.fsencode(files.path(index).absolute()) for index in indices]
        tables.append(pyarrow.table({"index": pyarrow.array(indices), "path": pyarrow.array(paths, pyarrow.binary())}))
    return tables
