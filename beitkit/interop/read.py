"""Which reader a path belongs to: run folders, Hugging Face and timm folders, and single files."""

from __future__ import annotations

from pathlib import Path

from beitkit.errors import UserError
from beitkit.interop.checkpoint import Checkpoint, split_skipped, to_official
from beitkit.interop.kinds import NetworkConfig, kind_of_config
from beitkit.interop.layouts import NATIVE
from beitkit.interop.native import DESCRIPTION, read_native


def read_checkpoint(path: Path) -> Checkpoint:
    """What the checkpoint at a path holds; no tensor is read yet.

    Raises:
        UserError: if there is nothing, or nothing that we know.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder or a checkpoint")
    if (path / DESCRIPTION).is_file():
        return _native(path)
    raise UserError(f"{path} is no checkpoint that beitkit knows")


def _native(path: Path) -> Checkpoint:
    config, tensors = read_native(path)
    if not isinstance(config, NetworkConfig):
        raise UserError(f"{path} holds a tokenizer, not a network; load_tokenizer reads it")
    used, skipped = split_skipped(tensors)
    official = to_official(used, NATIVE.tables[kind_of_config(config)])
    return Checkpoint(path=path, layout=NATIVE.name, config=config, tensors=official, skipped=skipped)
