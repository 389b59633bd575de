"""`beitkit embed`: the features of images, from any block of any network."""

from __future__ import annotations

from beitkit.configs.parts import shard_of
from beitkit.inference.command import command_of, shard_path
from beitkit.inference.engines import BATCHES_PER_BLOCK, chosen_engine, complete, shard
from beitkit.inference.features import feature_tables
from beitkit.inference.networks import Embedding
from beitkit.inference.predictor import BatchComputation
from beitkit.inference.result import PartedOutput, Written
from beitkit.interop.load import load
from beitkit.runs.predict.config import EmbedRun
from beitkit.runs.predict.inputs import gather_images
from beitkit.runs.predict.run import counted, progress, reported
from beitkit.system import quoted


def run(config: EmbedRun) -> Written:
    """Embed, and write the features with their paths."""
    model = load(config.model)
    embedding = Embedding(block=config.block, pool=config.pool)
    shape = embedding.shape(model)
    block = config.batch_size * BATCHES_PER_BLOCK
    number, shards = shard_of(config.shard)
    out = shard_path(config.out, number, shards, is_whole=config.shard is None)
    sheets = feature_tables(out, shape, config.dtype)
    found = gather_images(config.inputs)
    files = shard(found, block, number, shards)
    settings = {
        "block": config.block,
        "pool": config.pool,
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "shard": config.shard,
        "engine": config.engine,
    }
    command = command_of("embed", model, found, config.machine, settings)
    computation = BatchComputation(model=config.model, compute=embedding, machine=config.machine)
    engine = reported(chosen_engine(config.engine, computation, model, config.batch_size))
    result = PartedOutput(sheets, command, -(-len(files) // block))
    outcome = complete(result, files, block, engine, progress)
    each = " x ".join(map(str, shape))
    read = "numpy.load" if out.suffix == ".npy" else "pyarrow.parquet.read_table"
    print(f"written: {counted(outcome)}, {each} numbers each. Next: read it with {read}({quoted(out)!r})")
    return outcome
