"""Inference on a Ray cluster; Ray is imported on first use."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beitkit.configs.train import MachineConfig
from beitkit.contracts import Batch
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError
from beitkit.inference.part import Rows
from beitkit.inference.predictor import BatchComputation
from beitkit.inference.stored_views import ViewTokens

BATCHES_PER_TABLE = 16
"""What an actor is given at a time."""


def ray_results(files: ImageList, computation: BatchComputation, *, batch_size: int) -> Iterator[Rows]:
    """Results from actors on the Ray cluster of RAY_ADDRESS, or on a local one that is started and stopped here.

    There is one actor per GPU of the cluster, or per `threads` cores if it has none. Files are opened by absolute path, so all
    machines need the images and the checkpoint at the same paths.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached or cannot read the checkpoint.
    """
    tables = _tables(files, range(len(files)), batch_size * BATCHES_PER_TABLE)
    for batch in _by_actors(tables, replace(computation, model=computation.model.absolute()), computation.machine, batch_size):
        paths = [files.path(int(index)) for index in batch["index"]]
        yield Rows(paths, [str(error) for error in batch["error"]], _array(batch["values"]).astype(np.float32))


def ray_tokens(files: ImageList, wanted: Sequence[tuple[int, list[int]]], compute: ViewTokens) -> Iterator[Batch]:
    """Batches with `index`, `view`, `tokens` and `broken` of the wanted views (image, numbers), in order; see `ray_results`.

    An image that cannot be read has one row, with its number in `broken`.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached, or an actor finds another tokenizer.
    """
    size = max(1, compute.batch_size // compute.key.views)
    tables = _tables(files, [index for index, _ in wanted], size * BATCHES_PER_TABLE, [views for _, views in wanted])
    for batch in _by_actors(tables, replace(compute, tokenizer=compute.tokenizer.absolute()), compute.machine, size):
        yield {name: torch.from_numpy(_array(batch[name]).astype(np.int64)) for name in ("index", "view", "tokens", "broken")}


def _by_actors(
    tables: list[Any], computation: BatchComputation | ViewTokens, machine: MachineConfig, batch_size: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Map a computation over batches of table rows, in order."""
    ray = import_ray()
    if not tables:
        return
    with _cluster(ray):
        available = ray.cluster_resources()
        cores = machine.threads or 1
        gpus = int(available.get("GPU", 0)) if machine.device in ("auto", "cuda") else 0
        actors = gpus or max(1, int(available.get("CPU", 1)) // cores)
        results = ray.data.from_arrow(tables).map_batches(
            type(computation),
            fn_constructor_kwargs={field.name: getattr(computation, field.name) for field in fields(computation)},
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(tables))),
            num_cpus=None if gpus else cores,
            num_gpus=1 if gpus else None,
        )
        try:
            yield from results.iter_batches(batch_size=None, batch_format="numpy")
        except ray.exceptions.RayError as error:
            reason = getattr(error, "cause", None) or error
            raise UserError(f"`engine='ray'`: {' '.join(str(reason).split())[-300:]}") from None


def import_ray() -> Any:
    """The module ray with ray.data.

    Raises:
        UserError: it is not installed.
    """
    # Read by Ray when it starts: no usage statistics, and the logs of its processes stay in files.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("`engine='ray'` needs Ray; pip install 'beitkit[ray]', or leave `engine` out") from None
    return ray


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connect to a cluster quietly; an existing connection is kept."""
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            with _silent_stderr():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"`engine='ray'`: the cluster cannot be reached ({reason}); set RAY_ADDRESS, or unset it") from None
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
    """Redirect fd 2 to /dev/null, which also silences C++."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _tables(files: ImageList, indices: Sequence[int], rows: int, views: Sequence[list[int]] | None = None) -> list[Any]:
    """Images as tables (index, path[, views]) of `rows` rows; paths are bytes, as they need not be valid UTF-8."""
    import pyarrow  # comes with Ray

    if files.members is not None:
        raise UserError(
            f"`engine='ray'` opens images by their paths, but {files.root} holds archives; leave `engine` out, and divide "
            "the work with `shard`"
        )
    tables = []
    for first in range(0, len(indices), rows):
        chosen = indices[first : first + rows]
        paths = [os.fsencode(files.path(index).absolute()) for index in chosen]
        columns = {"index": pyarrow.array(chosen), "path": pyarrow.array(paths, pyarrow.binary())}
        if views is not None:
            columns["views"] = pyarrow.array(views[first : first + rows], pyarrow.list_(pyarrow.int64()))
        tables.append(pyarrow.table(columns))
    return tables


def _array(column: NDArray[Any]) -> NDArray[Any]:
    """Stack a column of arrays of equal shape."""
    return np.array(column.tolist()) if column.dtype == object else column
