"""`beitkit embed`: the features of images, from any block of any network."""

from __future__ import annotations

from beitkit.inference.features import feature_tables
from beitkit.inference.networks import Embedding
from beitkit.inference.predictor import fitted
from beitkit.inference.result import Written
from beitkit.interop.load import load
from beitkit.runs.predict.config import EmbedRun
from beitkit.runs.predict.parts import shard_file, write_in_parts
from beitkit.runs.training.own import NONE, OwnParts


def run(config: EmbedRun, own: OwnParts = NONE) -> Written:
    """Embed, and write the features with their paths. `own` are the objects that the config describes."""
    model = fitted(load(config.model), config.fit)
    embedding = Embedding(block=config.block, pool=config.pool)
    shape = embedding.shape(model)
    out = shard_file(config, config.out)
    files = feature_tables(out, shape, config.dtype)
    settings = {"block": config.block, "pool": config.pool, "dtype": config.dtype}
    outcome = write_in_parts(config, "embed", model, embedding, files, settings, own)
    each = " x ".join(map(str, shape))
    read = "numpy.load" if out.suffix == ".npy" else "pyarrow.parquet.read_table"
    print(f"written: {out} ({outcome.words}), {each} numbers each. Next: read it with {read}({str(out)!r})")
    return outcome
