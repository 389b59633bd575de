"""Models on the Hugging Face Hub: `hf://USER/NAME` in the place of a path, and folders uploaded when that is asked for.

No connection is opened unless a path begins with `hf://` or something is pushed. Downloads go through huggingface_hub (the extra
`hub`), which keeps them in its cache and obeys `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beitkit.errors import UserError

ADDRESS = re.compile(r"hf:/+(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
"""USER/NAME, then a branch, tag or commit, and one file of several; a `Path` keeps one of the two slashes."""
DESCRIPTIONS = ("*.json",)
SAFE_WEIGHTS = ("*.safetensors",)
OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.pkl")
"""What is downloaded where a repository has no safetensors."""
AT_TOP = "*/*"
"""What lies in folders of a repository is left there: checkpoints of the training, other formats."""


def is_on_hub(path: Path | str) -> bool:
    """Whether this names a model on the Hub; what lies on the disk under that very name comes first."""
    return str(path).startswith("hf:/") and not os.path.lexists(path)


def on_disk(path: Path) -> Path:
    """The path itself; for a model on the Hub, the folder or the file to which it was downloaded.

    Raises:
        UserError: the address is none, huggingface_hub is not installed, there is no such model, or the Hub cannot be reached.
    """
    return _downloaded(str(path)) if is_on_hub(path) else path


@functools.cache  # a command that reads a model twice reads the same one
def _downloaded(address: str) -> Path:
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(
            f"{address} is not a model on the Hub; expected hf://USER/NAME, hf://USER/NAME@REVISION or hf://USER/NAME/FILE"
        )
    where: dict[str, Any] = {"repo_id": found["repo"], "revision": found["revision"], "library_name": "beitkit"}
    library = _library()
    with _in_one_line(f"hf://{found['repo']}"), _quiet():
        if found["file"]:
            return Path(library.hf_hub_download(filename=found["file"], **where))
        for weights in (SAFE_WEIGHTS, OTHER_WEIGHTS):
            folder = Path(library.snapshot_download(allow_patterns=[*DESCRIPTIONS, *weights], ignore_patterns=AT_TOP, **where))
            if any(any(folder.glob(pattern)) for pattern in weights):
                return folder
    raise UserError(f"{address} gives no checkpoint that beitkit knows; name one of its files: hf://USER/NAME/FILE")


def check_repository(name: str) -> None:
    """Whether something can be pushed under this name, before work is done for it; nothing is sent.

    Raises:
        UserError: the name is not USER/NAME, or huggingface_hub is not installed.
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
        raise UserError(f"`push` expects USER/NAME, got {name!r}")
    _library()


def push(folder: Path, name: str) -> str:
    """Upload a folder's files as a model; returns its address.

    The repository is made, and is private, if it is not there; one that is there stays as public as it is.

    Raises:
        UserError: there is no permission, or the Hub cannot be reached.
    """
    interface = _library().HfApi(library_name="beitkit")
    with _in_one_line(f"hf://{name}"):
        interface.create_repo(name, private=True, exist_ok=True)
        interface.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by beitkit")
    return f"hf://{name}"


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise UserError("models on the Hub need huggingface_hub; pip install 'beitkit[hub]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings, such as that no file matches: what comes of it is said here."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _in_one_line(address: str) -> Iterator[None]:
    """What goes wrong on the way to the Hub, in one line."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except errors.LocalEntryNotFoundError:
        raise UserError(f"{address} is not among the downloaded models, and the Hub cannot be reached, or is not to be") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{address} has no such branch, tag or commit") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{address} has no such file") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{address} is not on the Hub, or not for you to see; a private model needs `hf auth login`, or HF_TOKEN"
        ) from None
    except (errors.HTTPError, ValueError, OSError) as problem:
        raise UserError(f"{address}: {' '.join(str(problem).split())[:300]}") from None
