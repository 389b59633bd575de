"""Read PyTorch's pickled files (`.pth`, `.pt`, `.bin`, `.pkl`) without executing anything in them.

A pickle is a program: it names functions and calls them. Here every name is looked up in an allowlist of stand-ins, which only
record their arguments: a tensor becomes a lazy tensor, a module a record of its attributes. Any other name is an error before
anything has run. Stand-ins are created per file, so nothing that a file does to them outlives it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from beitkit.errors import UserError
from beitkit.files import opened_regular, why
from beitkit.interop.stored import LazyTensor, State, read_slice

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first object of PyTorch's format before 1.6
MAX_DEPTH = 32  # of modules in modules; a module that contains itself must not loop forever
MOST_SHARED = 16
"""How many times the numbers of a file may be shown as tensors: some weights are stored once and used twice."""
SMALL = 2**26  # bytes; tables of positions, shared by all blocks, may be most of a small network
DEEPEST_TUPLE = 64
"""Tuples inside each other; Python's hash of a deep one overflows the stack."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MODULES = (
    ("dall_e.encoder", "Encoder"),
    ("dall_e.encoder", "EncoderBlock"),
    ("dall_e.decoder", "Decoder"),
    ("dall_e.decoder", "DecoderBlock"),
    ("dall_e.utils", "Conv2d"),
    ("torch.nn.modules.activation", "ReLU"),
    ("torch.nn.modules.container", "Sequential"),
    ("torch.nn.modules.linear", "Identity"),
    ("torch.nn.modules.pooling", "MaxPool2d"),
    ("torch.nn.modules.upsampling", "Upsample"),
)
"""The skeleton of DALL-E's networks, whose files hold whole modules instead of tensors."""
REMEMBERED = (
    ("argparse", "Namespace"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "device"),
    ("torch", "dtype"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
)
"""Other objects that training scripts store: options, paths, numbers. Recorded, never created."""


class Inert:
    """A stand-in for an object that is not a module: the arguments it was made with and the attributes it was given."""

    __slots__ = ("arguments", "attributes")

    arguments: tuple[object, ...]
    attributes: dict[Any, Any]

    def __new__(cls, *arguments: object) -> Inert:
        """By `__new__`, because a pickle may leave out `__init__`."""
        self = super().__new__(cls)
        self.arguments, self.attributes = arguments, {}
        return self

    def __setstate__(self, state: object) -> None:
        self.attributes = dict(state) if isinstance(state, dict) else {}


class Module(Inert):
    """A stand-in for a module."""

    __slots__ = ()


class Dictionary(dict[Any, Any]):
    """A stand-in for `OrderedDict` that forgets attributes (PyTorch hangs format versions on it)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class Storage(NamedTuple):
    """A block of numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int
    offset: int = 0
    """Elements into the block, where it is a view of a larger one (old format)."""


class TensorNote(NamedTuple):
    """Where a tensor's numbers lie."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Call:
    """A callable that only calls `run`."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[..., object]) -> None:
        self.run = run

    def __call__(self, *arguments: object) -> object:
        return self.run(*arguments)


class Unpickled(NamedTuple):
    """A file's content, made of dicts, lists, numbers, text and stand-ins."""

    path: Path
    root: Any
    block_offsets: dict[str, tuple[int, int]]
    """Where each storage's bytes begin, and how many there are."""

    def state(self, tensors: dict[str, TensorNote]) -> State:
        """Tensors to be read when they are wanted."""
        wanted, there = (
            sum(math.prod(note.shape) * note.storage.dtype.itemsize for note in tensors.values()),
            sum(size for _, size in self.block_offsets.values()),
        )
        if wanted > MOST_SHARED * there + SMALL:
            raise UserError(f"{self.path} shows its {there:,} bytes as tensors of {wanted:,}; it may have been tampered with")
        return {name: self._stored(name, note) for name, note in tensors.items()}

    def _stored(self, name: str, note: TensorNote) -> LazyTensor:
        storage, path = note.storage, self.path
        begin, size = self.block_offsets.get(storage.key, (0, -1))
        first = storage.offset + note.offset
        reach = first + (
            1 + sum((side - 1) * step for side, step in zip(note.shape, note.stride, strict=True)) if note.shape else 1
        )
        numel = math.prod(note.shape)
        # By the bytes that are there, not by what the file says of them: a stride of 0 shows one number any number of times.
        if numel and (reach * storage.dtype.itemsize > size or numel * storage.dtype.itemsize > size):
            raise UserError(f"{path} is damaged: tensor {name} reaches beyond its {max(size, 0)} bytes")
        offset = begin + first * storage.dtype.itemsize
        return LazyTensor(
            shape=note.shape,
            dtype=storage.dtype,
            read=lambda: read_slice(path, offset, storage.dtype, note.shape, note.stride),
            sources=(name,),
        )


def read_pickled(path: Path) -> Unpickled:
    """What a PyTorch file holds; its tensors are not read yet.

    Raises:
        UserError: if the file names anything but tensors and what usually lies beside them (nothing has been run then), if it is
            cut off, or if it is not a PyTorch checkpoint.
    """
    try:
        with opened_regular(path) as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(path)
            file.seek(257)
            if file.read(5) == b"ustar":
                raise UserError(
                    f"{path} is a tar archive, PyTorch's format before version 0.2; save it again with a newer PyTorch"
                )
            file.seek(0)
            return _read_legacy(path, file)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}") from None
    except Exception as problem:  # a damaged pickle can fail in any way at all
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(f"{path} is damaged or no PyTorch checkpoint ({reason}); download or copy it again") from None


def tensors_of(root: object) -> dict[str, TensorNote]:
    """The named tensors of a state dict, or of a whole module under the names its state dict would have."""
    if isinstance(root, Module):
        return _tensors_of_module(root, "", 0)
    if not isinstance(root, dict):
        return {}
    return {name: value for name, value in root.items() if isinstance(name, str) and isinstance(value, TensorNote)}


def _tensors_of_module(module: Module, prefix: str, depth: int) -> dict[str, TensorNote]:
    if depth > MAX_DEPTH:
        raise UserError(f"modules are nested more than {MAX_DEPTH} deep at {prefix[:60]}; this is no network")
    found: dict[str, TensorNote] = {}
    for group in ("_parameters", "_buffers"):
        found |= {prefix + name: note for name, note in tensors_of(module.attributes.get(group)).items()}
    children = module.attributes.get("_modules")
    for name, child in children.items() if isinstance(children, dict) else ():
        if isinstance(child, Module):
            found |= _tensors_of_module(child, f"{prefix}{name}.", depth + 1)
    return found


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, restricted to stand-ins."""

    def __init__(self, path: Path, file: Any) -> None:
        super().__init__(file)
        self.path, self.file = path, file
        self.storages: dict[str, Storage] = {}
        self.names: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): _fresh(Dictionary),
            ("builtins", "set"): _Call(lambda *_: []),
            ("torch", "Size"): _Call(lambda sides=(): sides),
            ("torch._utils", "_rebuild_tensor"): _Call(_note),
            ("torch._utils", "_rebuild_tensor_v2"): _Call(_note),
            ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
            ("torch._utils", "_rebuild_parameter_with_state"): _Call(lambda tensor, *_: tensor),
        }
        self.names |= {("torch", name): _Kind(dtype) for name, dtype in STORAGES.items()}
        self.names |= {("torch", str(dtype).removeprefix("torch.")): None for dtype in STORAGES.values()}
        self.names |= {place: _fresh(Module) for place in MODULES}
        self.names |= {place: _fresh(Inert) for place in REMEMBERED}

    def checked(self) -> Any:
        """What the pickle holds, whose instructions were looked through before any is carried out."""
        check_program(self.file)
        return self.load()

    def find_class(self, module: str, name: str, /) -> Any:
        """The stand-in for a name; the only way a pickle could reach an object."""
        place = ("builtins" if module == "__builtin__" else module, name)
        if place not in self.names:
            raise UserError(
                f"{self.path} refused: it names {ascii(f'{module}.{name}')[1:-1][:100]}, which no checkpoint needs; "
                "nothing of it was run"
            )
        return self.names[place]

    def persistent_load(self, pid: Any, /) -> Any:
        """The storage, or the class of a module (old format), that the file refers to."""
        parts: list[Any] = list(pid) if isinstance(pid, tuple) else []
        if len(parts) == 4 and parts[0] == "module":
            return parts[1]
        if len(parts) not in (5, 6) or parts[0] != "storage" or not isinstance(parts[1], _Kind):
            raise UserError(f"{self.path} refers to something that is not a tensor's storage; this is no PyTorch checkpoint")
        key, view = _key(self.path, parts[2]), parts[5] if len(parts) == 6 else None
        self.storages[key] = Storage(key, parts[1].dtype, int(parts[4]))
        return self.storages[key]._replace(offset=0 if view is None else int(view[1]))


def _key(path: Path, key: object) -> str:
    if not isinstance(key, str | int):  # anything else may be too large to be written out
        raise UserError(f"{path} names a storage in a way that PyTorch does not write; it may have been tampered with")
    return str(key)


def check_program(file: IO[bytes] | io.BufferedIOBase) -> None:
    """Look through a pickle's instructions and go back to its beginning; none is carried out.

    A few bytes may ask for any amount of memory: by the number under which something is remembered, for which Python makes a
    table that long, or by a length that the file does not have. Both are refused here, as are tuples too deep to be hashed.

    Raises:
        ValueError: it is no pickle, is cut off, or asks for such a thing.
    """
    start = file.tell()
    stack: list[int] = []  # how deep each object is in tuples
    marks: list[int] = []
    remembered: dict[int, int] = {}

    def popped(count: int) -> list[int]:
        """The last objects; after a mark, all of them."""
        end = len(stack) - count if count >= 0 else marks.pop() if marks else 0
        taken = stack[max(0, end) :]
        del stack[max(0, end) :]
        return taken

    for count, (instruction, argument, _) in enumerate(pickletools.genops(_Bounded(file))):  # type: ignore[arg-type] - it reads, which is enough
        name = instruction.name
        key = argument if isinstance(argument, int) else 0
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(remembered) if name == "MEMOIZE" else key
            if not 0 <= number <= count:
                raise ValueError(f"it remembers {count} objects at most, one of them as number {number}")
            remembered[number] = stack[-1] if stack else 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(remembered.get(key, 0))
        elif name == "DUP":
            stack.append(stack[-1] if stack else 0)
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            is_marked = pickletools.markobject in instruction.stack_before
            below = instruction.stack_before.index(pickletools.markobject) if is_marked else len(instruction.stack_before)
            inside = (popped(-1) if is_marked else []) + popped(below)
            if instruction.stack_after:
                depth = 1 + max(inside, default=0) if name.startswith("TUPLE") or name in _MAKES else 0
                if depth > DEEPEST_TUPLE:
                    raise ValueError(f"more than {DEEPEST_TUPLE} tuples inside each other")
                stack.append(depth)
    file.seek(start)


_MAKES = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "PERSID", "BINPERSID", "FROZENSET")


class _Bounded:
    """A file that is asked for no more bytes than it has: what it would answer with is made before it is read."""

    def __init__(self, file: IO[bytes] | io.BufferedIOBase) -> None:
        self.file, here = file, file.tell()
        self.end = file.seek(0, io.SEEK_END)
        file.seek(here)

    def read(self, length: int) -> bytes:
        return self.file.read(max(0, min(length, self.end - self.file.tell())))

    def readline(self) -> bytes:
        return self.file.readline()

    def tell(self) -> int:
        return self.file.tell()


class _Kind:
    """A stand-in for a storage class: the type of its numbers."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _fresh(kind: type) -> type:
    """A subclass for one file."""
    return type(kind.__name__, (kind,), {"__slots__": ()})


def _note(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorNote:
    numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError("a tensor of the file is described in a way that PyTorch does not write; it may have been tampered with")
    assert isinstance(offset, int)
    assert isinstance(shape, tuple)
    assert isinstance(stride, tuple)
    return TensorNote(storage, offset, shape, stride)


def _read_zip(path: Path) -> Unpickled:
    """PyTorch's format since 1.6: a zip archive of `data.pkl` and one uncompressed record per storage."""
    with opened_regular(path) as file, zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1 or any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in records):
            raise UserError(f"{path} is a zip archive, but no PyTorch checkpoint (a compiled TorchScript model is none either)")
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise UserError(
                f"{path} has compressed records, which PyTorch does not write; unpack it and save it again with PyTorch"
            )
        folder = pickles[0].removesuffix("data.pkl")
        order = folder + "byteorder"
        if order in records and archive.read(order) != b"little":
            raise UserError(f"{path} was saved on a big-endian machine; load and save it there with byteorder 'little'")
        unpickler = _Unpickler(path, io.BytesIO(archive.read(pickles[0])))
        root = unpickler.checked()
        blocks = {}
        for key in unpickler.storages:
            info = records.get(f"{folder}data/{key}")
            if info is None:
                raise UserError(f"{path} lacks the record data/{key}; download or copy it again")
            file.seek(info.header_offset)
            header = file.read(30)
            name_and_extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            blocks[key] = (info.header_offset + 30 + name_and_extra, info.file_size)
    return Unpickled(path, root, blocks)


def _read_legacy(path: Path, file: io.BufferedReader) -> Unpickled:
    """PyTorch's format before 1.6: a magic number, three pickles, the names of the storages, then their bytes."""
    unpickler = _Unpickler(path, file)
    if unpickler.checked() != LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but no PyTorch checkpoint; save a state dict with torch.save")
    _Unpickler(path, file).checked()  # protocol version
    _Unpickler(path, file).checked()  # sizes of C types on the machine that saved it
    unpickler = _Unpickler(path, file)
    root = unpickler.checked()
    keys = _Unpickler(path, file).checked()
    blocks = {}
    for key in keys if isinstance(keys, list) else ():
        storage = unpickler.storages[_key(path, key)]
        numel = int.from_bytes(file.read(8), "little")
        blocks[storage.key] = (file.tell(), numel * storage.dtype.itemsize)
        file.seek(numel * storage.dtype.itemsize, io.SEEK_CUR)
    if file.tell() > path.stat().st_size:
        raise UserError(f"{path} is cut off; download or copy it again")
    return Unpickled(path, root, blocks)
