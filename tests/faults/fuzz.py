"""Feed damaged files to everything that reads one, and report what is not refused in one line.

    python tests/faults/fuzz.py --seconds 600 [--only PART_OF_A_NAME ...] [--seed 0]

Each parser has a few good files; a mutation of them is a function of the seed, the parser's name and a number, so that a line of
the output repeats it. A parser may return, or raise `UserError`, `BrokenImage`, or (where its callers expect that) `OSError` or
`ValueError`. Everything else is printed with a traceback, and so are inputs that take longer than `SLOW` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from beitkit.command.config_file import arguments_of
from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import ReadLimit
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.train import TrainConfig
from beitkit.data.decoding.decode import BrokenImage, Encoded, open_image
from beitkit.data.decoding.limit import reading_up_to
from beitkit.data.decoding.raw import read_raw
from beitkit.data.scenes.label_codes import read_classes
from beitkit.data.scenes.masks import read_mask
from beitkit.data.sources.archives import archive_images, archives_at
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.index import open_index, write_index
from beitkit.data.tokens.cache import TokenCache, read_key
from beitkit.errors import UserError
from beitkit.interop.build import build
from beitkit.interop.formats.native import read_native, save_native
from beitkit.interop.load import load, load_tokenizer
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.planning.rates import given_rates
from beitkit.report.journal import read_journal
from beitkit.runs.checkpoints.card import sections
from beitkit.runs.compare import run as compare
from beitkit.runs.compare.config import CompareRun
from beitkit.runs.evaluate.model_paths import run_on
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pack import shards
from beitkit.runs.pipeline.ledger import Ledger
from beitkit.runs.replay import run as replay
from beitkit.runs.training.contents import read_contents, write_contents
from beitkit.train.bad_steps import listed
from beitkit.train.checkpoints.manifest import Manifest, RowRange, StoredFile, StoredTensor, parse_manifest
from beitkit.train.journal import Journal

SLOW = 10.0
"""Seconds of computing, far more than any of these files should take."""
MEMORY = 6 * 2**30
"""Bytes of address space that may be taken beside what is taken at the start; more is a `MemoryError`, which is reported."""


MISTAKES = (UserError, SystemExit)
"""What a command line is refused with."""


class Parser(NamedTuple):
    """Something that reads a file."""

    seeds: Sequence[bytes]
    read: Callable[[Path], object]
    """Takes the path of the mutated file."""
    name: str = "file"
    """What the file is called; some are known by their names."""
    expected: tuple[type[BaseException], ...] = (UserError, BrokenImage)


INTERESTING = (b"", b"\0", b"\xff", b"-1", b"0", b"1e999", b"1000000000", b"9" * 5000, b"[]", b"{}", b"null", b'""', b"[" * 3000)
WORDS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", bytes(8), b"\xff" * 8)


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """A few changes, of bytes or of JSON where the file is that."""
    if rng.random() < 0.5 and seed[:1] in (b"{", b"["):
        try:
            return json.dumps(_changed(json.loads(seed), rng)).encode("utf-8", "surrogatepass")
        except ValueError:
            pass
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + rng.randrange(1, 40)]
        elif kind == 3:
            data[place:place] = data[(other := rng.randrange(len(data) + 1)) : other + rng.randrange(1, 40)]
        elif kind == 4:
            word = rng.choice(WORDS)
            data[place : place + len(word)] = word
        elif kind == 5:
            data[place : place + rng.randrange(6)] = rng.choice(INTERESTING)
        else:
            data[place : place + 8] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 10**9, 10**400, 1e308, 0.5, "", "x", "\ud800", "a\0b", [], {}, [[]], [0] * 5, {"x": 1}, "9" * 300),
)


def _changed(content: Any, rng: random.Random) -> Any:
    """One value somewhere in it is another, is missing, or is there twice."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        kind = rng.randrange(12)
        if kind == 0:
            return {name: value for name, value in content.items() if name != key}
        if kind == 1:
            return content | {rng.choice(("x", "", "\n", key + key)): content[key]}
        return content | {key: _changed(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.7:
        place = rng.randrange(len(content))
        return content[:place] + [_changed(content[place], rng)] * rng.choice((0, 1, 1, 1, 2)) + content[place + 1 :]
    return rng.choice(VALUES)


def parsers(room: Path) -> dict[str, Parser]:
    """Everything that reads a file, with good ones; `room` is a folder for what lies beside them."""
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/16", image_size=32)
    backbone = replace(backbone, width=12, depth=2, heads=2, hidden=16, final_norm=False)
    classifier = Classifier(ClassifierConfig(backbone=backbone, classes=("cat", "dog")))
    masked = MaskedImageModel(MaskedImageModelConfig(backbone=replace(backbone, mask_token=True, final_norm=True), vocabulary=16))
    for name, network in (("classify", classifier), ("masked", masked)):
        save_native(network, room / name)
    torch.save({"model": classifier.state_dict(), "args": {"a": [1, "b", None]}}, room / "new.pth")
    torch.save(classifier.state_dict(), room / "old.pth", _use_new_zipfile_serialization=False)
    weights = (room / "classify" / "model.safetensors").read_bytes()
    hub = room / "hub"
    hub.mkdir()
    (hub / "model.safetensors").write_bytes(weights)
    hub_config = {"model_type": "beit", "hidden_act": "gelu", "image_size": 32, "num_attention_heads": 2, "id2label": {"0": "a"}}
    timm_config = {"architecture": "beit", "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5], "std": [0.5]}}

    images = room / "images"
    for label in ("a", "b"):
        (images / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20), (number * 40, 90, 200)).save(images / label / f"{number}.png")
    write_index(room / "x.index", find_labeled(images))
    encoded = {kind: _encoded(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")}
    np.save(room / "a.npy", np.zeros((20, 20, 3), dtype=np.uint16))
    np.savez_compressed(room / "a.npz", np.zeros((20, 20), dtype=np.float32))
    jsonl = b'{"path": "a/0.png", "label": "a"}\n{"path": "b/1.png", "label": "b"}\n'
    csv = b'path,label,split\na/0.png,a,train\n"b/1.png",b,train\n'
    stored = StoredTensor("F32", (4, 2), (RowRange(0, 0, 2), RowRange(1, 2, 4)))
    manifest = Manifest(5, {"seed": 1.0}, {0: StoredFile(9, "ab"), 1: StoredFile(9, "cd")}, {"w": stored}).encode()
    unsigned = json.dumps({key: value for key, value in json.loads(manifest).items() if key != "checksum"}).encode()
    journal = b'{"kind": "train", "step": 1, "loss": 2.5}\n{"kind": "note", "step": 2, "text": "x"}\n'
    cache = room / "cache"

    def in_folder(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
        def put(path: Path) -> object:
            (room / name).write_bytes(path.read_bytes())
            return read((room / name).parent)

        return put

    def beside_images(read: Callable[[Path], object]) -> Callable[[Path], object]:
        def put(path: Path) -> object:
            there = images / path.name
            there.write_bytes(path.read_bytes())
            try:
                return read(there)
            finally:
                there.unlink()

        return put

    def native(folder: Path) -> object:
        config, tensors = read_native(folder)
        return build(config, tensors)

    def rewound(path: Path) -> object:
        Journal(path).rewind(1)
        return read_journal(path)

    def cached(folder: Path) -> object:
        return TokenCache(folder, read_key(folder), is_writable=False).missing()

    def decoded(path: Path) -> object:
        return open_image(Encoded(path, path.read_bytes()), 3)

    def archived(path: Path) -> object:
        found = archives_at(path)
        assert found is not None
        files = archive_images(found, labeled=True)
        assert files.members is not None
        for number in range(min(2, len(files))):
            try:
                files.members.read(number)
            except OSError:
                continue
        return files

    def indexed(path: Path) -> object:
        files = open_index(str(path), labeled=True)
        return [files.path(number) for number in range(len(files))]

    found = {
        "model.json, masked": Parser([(room / "masked" / "model.json").read_bytes()], in_folder("masked/model.json", native)),
        "model.json": Parser([(room / "classify" / "model.json").read_bytes()], in_folder("classify/model.json", load)),
        "safetensors": Parser([weights], load, "model.safetensors"),
        "pickle of a zip": Parser([(room / "new.pth").read_bytes()], load, "a.pth"),
        "pickle, legacy": Parser([(room / "old.pth").read_bytes()], load, "a.pth"),
        "tokenizer": Parser([(room / "new.pth").read_bytes()], load_tokenizer, "a.pth"),
        "config.json of transformers": Parser([json.dumps(hub_config).encode()], in_folder("hub/config.json", load)),
        "config.json of timm": Parser([json.dumps(timm_config).encode()], in_folder("hub/config.json", load)),
        "config codec": Parser(
            [json.dumps(to_json(masked.config)).encode()], lambda path: from_json(MaskedImageModelConfig, _json(path))
        ),
        "manifest": Parser([manifest, unsigned], lambda path: parse_manifest(path.read_bytes()), expected=(ValueError,)),
        "journal": Parser([journal], rewound, "journal.jsonl"),
        "rates": Parser([b'{"matrix_rate": {"float32": 1e12}, "share": {}, "device": "x", "jobs": []}'], _rates),
        "classes.json": Parser([b'{"names": ["a", "b"], "colors": [[0, 0, 0], [1, 2, 3]], "ids": {"7": 1}}'], read_classes),
        "index": Parser([(room / "x.index").read_bytes()], indexed, "x.index"),
        "list of names": Parser([b"a/0.png\nb/1.png\n", "a/0.png\n".encode("utf-16")], beside_images(find_images), "l.txt"),
        "CSV": Parser([csv, csv.decode().encode("utf-16")], beside_images(find_labeled), "l.csv"),
        "JSON lines": Parser([jsonl], beside_images(find_labeled), "l.jsonl"),
        "tar": Parser([_tar(images)], archived, "a.tar"),
        "NumPy": Parser([(room / "a.npy").read_bytes()], read_raw, "a.npy"),
        "NumPy, zipped": Parser([(room / "a.npz").read_bytes()], read_raw, "a.npz"),
        "masks": Parser([encoded["PNG"], encoded["TIFF"]], read_mask),
    }
    found |= {"contents.npy": Parser([_contents(room)], read_contents), "bad steps": _bad_steps()}
    found |= _options(room)
    found |= {f"image, {kind}": Parser([data], decoded) for kind, data in encoded.items()}
    found |= {f"raw image, {kind}": Parser([encoded[kind]], read_raw) for kind in ("PNG", "TIFF", "JPEG", "PPM")}
    found |= _runs(room, classifier, in_folder)
    _add_cache(found, cache, in_folder, cached)
    _add_parquet(found, room, archived)
    return found


def _add_cache(found: dict[str, Parser], folder: Path, in_folder: Any, cached: Callable[[Path], object]) -> None:
    """A token cache, each file of which is damaged in turn."""
    from beitkit.configs.data import ViewConfig
    from beitkit.data.tokens import cache
    from beitkit.data.tokens.key import CacheKey

    key = CacheKey(
        tokenizer="ab", precision="float32", vocabulary=16, token_size=(8, 8), grid=(2, 2), patch=(8, 8), channels=3,
        image_size=(16, 16), view=ViewConfig(), seed=0, views=2, pictures="cd",
    )  # fmt: skip
    cache._make(folder, key, np.zeros((3, 3), dtype=np.int64), cache.WHOLE)
    for name in (cache.HEADER, cache.TOKENS, cache.STATES):
        good = (folder / name).read_bytes()

        def read(path: Path, name: str = name, good: bytes = good) -> object:
            try:
                return in_folder(f"cache/{name}", cached)(path)
            finally:
                (folder / name).write_bytes(good)

        found[f"token cache, {name}"] = Parser([good], read)


def _contents(room: Path) -> bytes:
    write_contents(room / "contents.npy", np.arange(24, dtype=np.int64).reshape(6, 4))
    return (room / "contents.npy").read_bytes()


def _bad_steps() -> Parser:
    """The list of steps that were not finite, read as `beitkit replay` reads it."""
    line = b'{"step": 3, "first_batch": 4, "loss": "nan", "grad_norm": 1.5, "images": ["a.png", "b.png"]}\n'

    def read(path: Path) -> object:
        return [(one.step + one.first_batch, one.loss - one.grad_norm, ", ".join(one.images)) for one in listed(path)]

    return Parser([line * 2, line.replace(b'"nan"', b"2.5")], read, "steps.jsonl")


def _runs(room: Path, model: Classifier, in_folder: Callable[..., Any]) -> dict[str, Parser]:
    """Files of a run's folder besides its model, each read as the verbs do that are given the folder."""
    config = FinetuneRun(room / "images", model=room / "classify", out=room / "run", train=TrainConfig(steps=4))
    good = {
        "config.json": {"verb": "finetune", **to_json(config)},
        "environment.json": {"beitkit": "0.1.0", "torch": "2.13.0", "gpus": ["x"], "cores": 2, "continued": [{"cores": 2}]},
        "result.json": {"top1": 0.5, "val_digest": "ab", "classes": {"a": 0.5, "b": {"c": 1}}, "images": [1, 0]},
    }
    for folder in (room / "run", room / "other"):
        folder.mkdir()
        for name, content in good.items():
            (folder / name).write_text(json.dumps(content))
        (folder / "journal.jsonl").write_text(
            '{"kind": "train", "step": 1, "loss": 2.5}\n{"kind": "evaluate", "step": 2, "top1": 0.5}\n'
        )

    def compared(folder: Path) -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return compare.run(CompareRun((folder, room / "other")))

    def laid_back(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
        def put(path: Path) -> object:
            try:
                return in_folder(f"run/{name}", read)(path)
            finally:
                (room / "run" / name).write_text(json.dumps(good[name]))

        return put

    readers: dict[str, Callable[[Path], object]] = {"compared": compared, "card": lambda folder: sections(folder, model)}
    of_config: dict[str, Callable[[Path], object]] = {
        "replayed": replay._read,
        "evaluated": lambda folder: run_on(folder, room / "images"),
    }
    packing = {"settings": {"pictures": "ab", "shard_bytes": 9}, "taken": [2, 4], "skipped": [[1, "broken"]]}
    ledger = {"stages": {"audit": {"done": True, "seconds": 2.5, "settings": {"a": 1}}}, "spent": 3.5, "began": None}
    packed, settings = room / "packed", shards._Settings(pictures="ab", shard_bytes=9)
    packed.mkdir()
    found = {
        f"run, {name}, {reader}": Parser([json.dumps(content).encode()], laid_back(name, read))
        for name, content in good.items()
        for reader, read in (readers | (of_config if name == "config.json" else {})).items()
    }
    return found | {
        "packing.json": Parser(
            [json.dumps(packing).encode()],
            in_folder(f"packed/{shards.PACKING}", lambda folder: shards._whole_shards(folder, settings)),
        ),
        "progress.json": Parser(
            [json.dumps(ledger).encode()], in_folder("packed/progress.json", lambda folder: Ledger(folder).is_done("audit"))
        ),
    }


def _options(room: Path) -> dict[str, Parser]:
    """Files of `--config` in each language, as far as to the config that they make."""
    from beitkit.command.parse import parse
    from beitkit.runs.pretrain.config import PretrainRun

    def made(path: Path) -> object:
        return parse(PretrainRun, arguments_of(path, "pretrain", PretrainRun, [], 0), "beitkit pretrain")

    config = PretrainRun(room / "images", out=room / "run", target="pixels")
    recorded = json.dumps({"verb": "pretrain", **to_json(config)}).encode()
    common = {
        "images": "photos",
        "out": "runs/x",
        "target": "pixels",
        "steps": 5,
        "lr": 1e-3,
        "image_size": [32, 32],
        "loop": {"ema": 0.9},
    }
    toml = b"images = 'photos'\nout = 'x'\ntarget = 'pixels'\nsteps = 5\nlr = 1e-3\nimage_size = [32, 32]\n[loop]\nema = 0.9\n"
    yaml = b"images: photos\nout: x\ntarget: pixels\nsteps: 5\nlr: 1e-3\nimage-size: [32, 32]\nloop:\n  ema: 0.9\n"
    return {
        "options, JSON": Parser([recorded, json.dumps(common).encode()], made, "x.json", MISTAKES),
        "options, TOML": Parser([toml], made, "x.toml", MISTAKES),
        "options, YAML": Parser([yaml], made, "x.yaml", MISTAKES),
    }


def _add_parquet(found: dict[str, Parser], room: Path, archived: Callable[[Path], object]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    table = pyarrow.table({"image": [{"bytes": _encoded("PNG"), "path": f"{n}.png"} for n in range(4)], "label": [0, 1, 0, 1]})
    pyarrow.parquet.write_table(table, room / "a.parquet")
    found["Parquet"] = Parser([(room / "a.parquet").read_bytes()], archived, "a.parquet")


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _tar(images: Path) -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, path in enumerate(sorted(images.rglob("*.png"))):
            archive.add(path, f"{number}.png")
            label = tarfile.TarInfo(f"{number}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"01"[number % 2 :][:1]))
    return buffer.getvalue()


def _json(path: Path) -> Any:
    from beitkit.files import read_json

    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(str(error)) from None


def _rates(path: Path) -> object:
    return given_rates(path, None, 0.5, "float32", "pretrain")


def fuzz(seconds: float, seed: int = 0, only: Sequence[str] = (), say: Callable[[str], object] = print) -> int:
    """Take turns through the parsers until the time is over; returns how many inputs were not handled."""
    bad, tried = Counter[str](), Counter[str]()
    # The limit is small, so that an input that asks for much is refused as it would be at any size.
    with tempfile.TemporaryDirectory() as folder, reading_up_to(ReadLimit(max_memory=50.0)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: parser for name, parser in parsers(Path(folder)).items() if not only or any(part in name for part in only)}
        for parser in found.values():  # whatever is imported at the first use
            path = Path(folder) / parser.name
            path.write_bytes(parser.seeds[0])
            with contextlib.suppress(*parser.expected):
                parser.read(path)
        number, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            for name, parser in found.items():
                if time.monotonic() > end and all(tried[one] for one in found):
                    break
                rng = random.Random(f"{seed} {name} {number}")
                content = mutated(rng.choice(parser.seeds), rng)
                (Path(folder) / "input").mkdir(exist_ok=True)
                path = Path(folder) / "input" / parser.name
                path.write_bytes(content)
                tried[name] += 1
                problem, begun = "", time.process_time()
                try:
                    parser.read(path)
                except parser.expected as error:
                    if "\n" in str(error) or "[Errno" in str(error):
                        problem = f"not one plain line: {str(error)!r}"
                except Exception:
                    problem = traceback.format_exc()
                if not problem and time.process_time() - begun > SLOW:
                    problem = f"took {time.process_time() - begun:.0f} s"
                if problem:
                    bad[name] += 1
                    if bad[name] <= 5:
                        say(f"--- {name}, seed {seed}, number {number}: {content[:200]!r}\n{problem}")
            number += 1
    say(f"{tried.total():,} inputs to {len(tried)} parsers; not handled: {dict(bad) or 'none'}")
    return bad.total()


def main() -> int:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args()
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    return 1 if fuzz(given.seconds, given.seed, given.only) else 0


if __name__ == "__main__":
    sys.exit(main())
