"""Shared by `predict` and `embed`: the key of a result, its files, progress."""

from __future__ import annotations

from pathlib import Path

from beitkit.configs.train import MachineConfig
from beitkit.data.sources.image_list import ImageList
from beitkit.inference.result import Setting
from beitkit.interop.kinds import Network
from beitkit.tokenizers.fingerprint import digest_of


def command_of(
    verb: str, model: Network, files: ImageList, machine: MachineConfig, settings: dict[str, Setting]
) -> dict[str, Setting]:
    """Everything a result depends on: a command only resumes parts with an equal key."""
    return {
        "verb": verb,
        "model": digest_of(model.config, model.state_dict()),
        "inputs": files.digest,
        "pictures": len(files),
        "device": machine.device,
        "precision": machine.precision,
        **settings,
    }


def shard_path(out: Path, number: int, shards: int, *, is_whole: bool) -> Path:
    """The file of a shard: `new-00003-of-00008.csv` for `new.csv`; `out` itself without shards."""
    return out if is_whole else out.with_name(f"{out.stem}-{number:05d}-of-{shards:05d}{out.suffix}")
