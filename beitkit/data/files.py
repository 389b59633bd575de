"""Finding pictures: folders, class folders, text lists and CSV tables become one indexed, flat `PictureList`.

The list holds all names in one block of bytes, not in a Python list: worker processes share it without copying, and ten
million names cost their bytes and eight more each. Names that are not valid UTF-8 are kept as they are. Only regular
files count as pictures; a pipe, a device or a folder called `x.jpg` is left out, so that nothing blocks on it later.
"""

from __future__ import annotations

import csv
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from beitkit.errors import UserError

# What is read, by Pillow's name of the format, with the endings a folder is searched for. Of all that Pillow opens this
# leaves out what is no raster picture or hands the file to another program (EPS runs Ghostscript, WMF needs Windows; MPEG,
# PDF, HDF5, GRIB and BUFR are containers that Pillow cannot decode), and IM, which Pillow is about to drop. A file's first
# bytes are compared in this order, so the common formats come first.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "BLP": (".blp",),
    "CUR": (".cur",),
    "DCX": (".dcx",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "FITS": (".fit", ".fits"),
    "FLI": (".fli", ".flc"),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "IPTC": (".iim",),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "MSP": (".msp",),
    "PCD": (".pcd",),
    "PCX": (".pcx",),
    "PIXAR": (".pxr",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "SUN": (".ras",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
}
EXTENSIONS: frozenset[str] = frozenset(ending for endings in FORMATS.values() for ending in endings)

Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, eq=False)
class PictureList:
    """Pictures by index, with labels if they have any. Build one with `find_pictures` or `find_labelled`."""

    root: Path
    """What the names are relative to."""
    names: bytes
    """All names, one after the other."""
    offsets: NDArray[np.int64]
    """Where each name begins in `names`, and at the end where the last one stops; one longer than the list."""
    labels: NDArray[np.int64] | None = None
    """Index into `classes` per picture."""
    classes: tuple[str, ...] = ()
    targets: NDArray[np.bool_] | None = None
    """Which of `classes` each picture shows, (pictures, classes); in place of `labels` where it may show several."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def path(self, index: int) -> Path:
        """The file of one picture."""
        return self.root / os.fsdecode(self._name(index))

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> PictureList:
        """The pictures at these indices, in this order; classes stay as they are."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        targets = None if self.targets is None else self.targets[chosen]
        return replace(_listed(self.root, [self._name(int(index)) for index in chosen], labels, self.classes), targets=targets)

    @property
    def digest(self) -> str:
        """Hexadecimal digest of names, order, labels and classes; moving the whole folder does not change it."""
        digest = hashlib.blake2b(digest_size=16)
        labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
        for part in (self.names, self.offsets.astype("<i8").tobytes(), labels, "\0".join(self.classes).encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()

    def _name(self, index: int) -> bytes:
        return self.names[self.offsets[index] : self.offsets[index + 1]]


def find_pictures(path: Path | str) -> PictureList:
    """All pictures of a folder (nested ones too, sorted by name), a text list or a CSV table, without labels.

    A text list has one path a line, relative to the list's own folder; empty lines and lines that begin with `#` are
    skipped. A CSV table has a header with a column `path`. Hidden files and folders are skipped; links are followed, but
    no folder is entered twice.

    Raises:
        UserError: nothing at the path, no pictures there, or a row of a list that names no file (with its line number).
    """
    path = Path(path)
    if _exists_as_folder(path):
        names = sorted(_walk(path))
        if not names:
            raise UserError(f"{path} holds no pictures (files that end in .jpg, .png, .webp, .tif and so on)")
        return _listed(path, names)
    rows = list(_rows(path, labelled=False))
    return _listed(path.parent, [name for _, name, _ in rows])


def find_labelled(path: Path | str, split: Split | None = None, classes: Sequence[str] | None = None) -> PictureList:
    """Labelled pictures: one folder per class, or a CSV table with the columns `path` and `label`.

    Classes are sorted by name (by number if all are numbers). With `split`, class folders are looked for in `train/`,
    `val/` or `test/` (`training/` and so on work too) under the path; a table has no splits. With `classes`, labels are
    indices into these: pass the training pictures' classes when reading the validation pictures.

    Raises:
        UserError: missing or empty path, no class folders, an empty class, pictures beside the class folders, fewer than
            two classes, a class that is not in `classes`, or an unreadable row of a table.
    """
    path = Path(path)
    if _exists_as_folder(path):
        return _class_folders(_split_folder(path, split), classes)
    if split is not None:
        raise UserError(f"{path} is a list and has no split {split!r}; give one list per split, or a folder with {split}/ in it")
    rows = list(_rows(path, labelled=True))
    if classes is None:
        classes = sorted({label for _, _, label in rows}, key=_class_order)
        _at_least_two(classes, path)
    index = {name: label for label, name in enumerate(classes)}
    for line, _, label in rows:
        if label not in index:
            raise UserError(f"{path}, line {line}: label {label!r} is not one of the {len(classes)} known classes")
    labels = np.array([index[label] for _, _, label in rows], dtype=np.int64)
    return _listed(path.parent, [name for _, name, _ in rows], labels, classes)


def split_folders(path: Path | str) -> Mapping[Split, Path]:
    """Which splits a folder has: `train`, `val`, `test` and the folder of each; empty when the classes lie directly in it."""
    path = Path(path)
    if not path.is_dir():
        return {}
    folders: dict[Split, Path] = {}
    for split, names in SPLIT_NAMES.items():
        found = next((path / name for name in names if (path / name).is_dir()), None)
        if found is not None:
            folders[split] = found
    return folders


def _exists_as_folder(path: Path) -> bool:
    if path.is_dir():
        return True
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder of pictures, a text list or a CSV table")
    if not path.is_file():
        raise UserError(f"{path} is neither a folder nor a regular file; give a folder of pictures, a text list or a CSV table")
    if path.suffix.lower() in EXTENSIONS:
        raise UserError(f"{path} is one picture; give the folder it is in, or a text list")
    return False


def _walk(root: Path) -> Iterator[bytes]:
    """Names relative to `root` of all pictures below it, in no promised order."""
    top = os.path.join(os.fsencode(root), b"")  # noqa: PTH118 - names are bytes here, which a Path cannot hold
    entered: set[tuple[int, int]] = set()
    folders = [top]
    while folders:
        folder = folders.pop()
        status = os.stat(folder)  # noqa: PTH116
        # A folder is known by device and inode: links that lead back up would otherwise be followed for ever.
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        entries = _entries(folder)
        folders.extend(sorted((entry.path for entry in entries if entry.is_dir()), reverse=True))
        yield from (entry.path[len(top) :] for entry in entries if _is_picture(entry))


def _is_picture(entry: os.DirEntry[bytes]) -> bool:
    """Whether this is a regular file with the ending of a picture."""
    _, dot, ending = os.fsdecode(entry.name).rpartition(".")
    return dot + ending.lower() in EXTENSIONS and entry.is_file()


def _entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    """What lies in a folder, without hidden entries."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(b".")]
    except OSError as error:
        raise UserError(f"the folder {os.fsdecode(folder)} cannot be listed: {error.strerror}") from error


def _split_folder(path: Path, split: Split | None) -> Path:
    folders = split_folders(path)
    if split is not None:
        if split not in folders:
            has = f"it has {', '.join(folders)}" if folders else f"expected {path / SPLIT_NAMES[split][0]}"
            raise UserError(f"{path} has no split {split!r}; {has}")
        return folders[split]
    # A class may well be called `test`; two of these names side by side, or a train folder, are no classes.
    if "train" in folders or len(folders) > 1:
        raise UserError(
            f"{path} is divided into {', '.join(folders)}; choose one of them, such as {next(iter(folders.values()))}"
        )
    return path


def _class_folders(path: Path, classes: Sequence[str] | None) -> PictureList:
    entries = sorted(_entries(os.fsencode(path)), key=lambda entry: entry.name)
    found = sorted((os.fsdecode(entry.name) for entry in entries if entry.is_dir()), key=_class_order)
    stray = next((entry.name for entry in entries if _is_picture(entry)), None)
    if not found:
        what = "pictures but no class folders" if stray else "neither pictures nor class folders"
        raise UserError(f"{path} holds {what}; expected one folder per class, or a CSV table with the columns path and label")
    if stray is not None:
        raise UserError(f"{path / os.fsdecode(stray)} lies beside the class folders; move it into one of them")
    if classes is None:
        _at_least_two(found, path)
        classes = found
    index = {name: label for label, name in enumerate(classes)}
    names: list[bytes] = []
    labels: list[int] = []
    for name in found:
        if name not in index:
            raise UserError(f"{path / name} is a class that the {len(classes)} known classes do not have; rename or remove it")
        inside = sorted(_walk(path / name))
        if not inside:
            raise UserError(f"the class folder {path / name} holds no pictures; fill or remove it")
        names.extend(os.fsencode(f"{name}/") + picture for picture in inside)
        labels.extend([index[name]] * len(inside))
    return _listed(path, names, np.array(labels, dtype=np.int64), classes)


def _at_least_two(classes: Sequence[str], path: Path) -> None:
    if len(classes) < 2:
        raise UserError(f"{path} has only the class {classes[0]!r}; a classifier needs two or more")


def _class_order(name: str) -> tuple[int, str]:
    """Numbers by value and before words, words by code point."""
    return (int(name), "") if name.isascii() and name.isdigit() else (1 << 62, name)


def _rows(path: Path, *, labelled: bool) -> Iterator[tuple[int, bytes, str]]:
    """(line number, name, label) of each row of a text list or CSV table; labels are empty when not asked for."""
    if labelled and path.suffix.lower() != ".csv":
        raise UserError(f"{path} has no labels; give one folder per class, or a .csv table with the columns path and label")
    read = _csv_rows(path, labelled=labelled) if path.suffix.lower() == ".csv" else _text_rows(path)
    some = False
    for line, name, label in read:
        _check_row(path, line, name)
        some = True
        yield line, os.fsencode(name), label
    if not some:
        raise UserError(f"{path} lists no pictures")


def _text_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, start=1):
            name = text.strip()
            if name and not name.startswith("#"):
                yield line, name, ""


def _csv_rows(path: Path, *, labelled: bool) -> Iterator[tuple[int, str, str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            for column in ("path", "label") if labelled else ("path",):
                if column not in header:
                    raise UserError(
                        f"{path}: the first line must name a column {column!r}; found {', '.join(header) or 'nothing'}"
                    )
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{path}, line {reader.line_num}: expected {len(header)} columns as in the first line")
                label = row["label"].strip() if labelled else ""
                if labelled and not label:
                    raise UserError(f"{path}, line {reader.line_num}: the label is empty")
                yield reader.line_num, row["path"].strip(), label
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from error


def _check_row(path: Path, line: int, name: str) -> None:
    """Raise unless the row names a regular file."""
    shown = name if len(name) <= 200 else name[:200] + "..."
    try:
        status = (path.parent / name).stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(
            f"{path}, line {line}: there is no picture {shown!r} (paths are relative to the list's folder)"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}, line {line}: {shown!r} is not a regular file")


def _listed(
    root: Path, names: Sequence[bytes], labels: NDArray[np.int64] | None = None, classes: Sequence[str] = ()
) -> PictureList:
    offsets = np.zeros(len(names) + 1, dtype=np.int64)
    np.cumsum([len(name) for name in names], out=offsets[1:])
    return PictureList(root, b"".join(names), offsets, labels, tuple(classes))
