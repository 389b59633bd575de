"""Image formats and their file extensions."""

from __future__ import annotations

import importlib.util
import os

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
"""Whether what phones write is read, by pillow-heif."""
HEIF_EXTRA = "pip install 'beitkit[heic]'"
"""What makes it so."""
# What is read, by Pillow's name of the format, with the endings a folder is searched for. Of all that Pillow opens this
# leaves out what is no raster image or hands the file to another program (EPS runs Ghostscript, WMF needs Windows; MPEG,
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
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
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
DEEP: dict[str, tuple[str, ...]] = {"NUMPY": (".npy", ".npz"), "DICOM": (".dcm", ".dicom")}
"""What others than Pillow read, for networks with a value range (`decoding.raw`)."""
ALL_EXTENSIONS: frozenset[str] = frozenset(
    ending for kinds in (FORMATS, DEEP) for endings in kinds.values() for ending in endings
)
"""Of images, whether they can be read here or not."""
EXTENSIONS: frozenset[str] = ALL_EXTENSIONS if HAS_HEIF else ALL_EXTENSIONS - {*FORMATS["HEIF"]}
"""What folders and archives are searched for."""


def ending_of(name: bytes) -> str:
    """What follows the last dot of a name, with it and in small letters; empty where there is none."""
    _, dot, ending = os.fsdecode(name).rpartition(".")
    return dot + ending.lower() if dot else ""


def has_ending(name: bytes) -> bool:
    """Whether a name ends as those of images that are read."""
    return ending_of(name) in EXTENSIONS
