"""Files of more than 8 bits and of other channels than RGB, against tifffile, pydicom and the arrays that were written."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from beitkit.data.decoding.decode import BrokenImage, Encoded, open_image
from beitkit.data.decoding.raw import read_raw, whole_format
from beitkit.data.decoding.reading import is_deep, whole_image

RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 65536, (20, 16, 3)).astype(np.uint16)
BYTES = RNG.integers(0, 256, (20, 16, 4)).astype(np.uint8)
BANDS = RNG.integers(0, 10000, (20, 16, 13)).astype(np.uint16)


def tiff(path: Path, array: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


def first(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


LAYOUTS = {
    "gray 16": (WIDE[..., 0], {"photometric": "minisblack"}),
    "gray 16 big-endian": (WIDE[..., 0], {"photometric": "minisblack", "byteorder": ">"}),
    "gray 16 deflate": (WIDE[..., 0], {"photometric": "minisblack", "compression": "zlib", "predictor": True}),
    "gray 32": (WIDE[..., 0].astype(np.uint32) * 60000, {"photometric": "minisblack"}),
    "gray signed": (WIDE[..., 0].astype(np.int32) - 30000, {"photometric": "minisblack"}),
    "gray signed 8": (BYTES[..., 0].astype(np.int8), {"photometric": "minisblack"}),
    "gray half": (WIDE[..., 0].astype(np.float16), {"photometric": "minisblack"}),
    "gray float": (WIDE[..., 0].astype(np.float32), {"photometric": "minisblack"}),
    "gray double": (WIDE[..., 0].astype(np.float64), {"photometric": "minisblack"}),
    "RGB 16": (WIDE, {"photometric": "rgb"}),
    "RGB 16 big-endian": (WIDE, {"photometric": "rgb", "byteorder": ">"}),
    "RGB 16 deflate": (WIDE, {"photometric": "rgb", "compression": "zlib", "predictor": True}),
    "RGB 16 tiled": (WIDE, {"photometric": "rgb", "tile": (16, 16)}),
    "RGB half": ((WIDE / 65536).astype(np.float16), {"photometric": "rgb"}),
    "RGB float": (WIDE.astype(np.float32), {"photometric": "rgb"}),
    "RGB double": (WIDE.astype(np.float64), {"photometric": "rgb"}),
    "four bands as RGB, nothing said of the fourth": (BYTES, {"photometric": "rgb", "extrasamples": ("unspecified",)}),
    "four bands": (BYTES, {"photometric": "minisblack", "planarconfig": "contig"}),
    "four bands 16": (BYTES.astype(np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}),
    "two bands": (WIDE[..., :2], {"photometric": "minisblack", "planarconfig": "contig"}),
    "13 bands": (BANDS, {"photometric": "minisblack", "planarconfig": "contig"}),
    "13 bands deflate": (
        BANDS,
        {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib", "predictor": True},
    ),
    "13 bands BigTIFF": (BANDS, {"photometric": "minisblack", "planarconfig": "contig", "bigtiff": True}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_tiff_gives_what_was_written(name: str, tmp_path: Path) -> None:
    array, options = LAYOUTS[name]
    path = tiff(tmp_path / "a.tif", array, **options)
    raw = read_raw(path)
    assert not raw.has_alpha
    assert np.array_equal(raw.values, first(array))
    assert np.array_equal(read_raw(Encoded(path, path.read_bytes())).values, first(array))
    with pytest.raises(BrokenImage, match=r"bits a channel|floats a channel|sign|`channels`"):
        open_image(path, 3)  # as 8 bits


@pytest.mark.parametrize("array", [WIDE, BANDS, BYTES], ids=["RGB 16", "13 bands", "4 bands"])
def test_planes_are_read_as_planes(array: np.ndarray, tmp_path: Path) -> None:
    photometric = "rgb" if array.shape[2] == 3 else "minisblack"
    path = tiff(tmp_path / "a.tif", first(array), photometric=photometric, planarconfig="separate")
    assert np.array_equal(read_raw(path).values, first(array))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_where_white_is_zero_black_is_shown_as_black(compression: str | None, tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", WIDE[..., 0], photometric="miniswhite")
    assert np.array_equal(read_raw(path).values[0], 65535 - WIDE[..., 0])
    Image.fromarray(BYTES[..., 0]).save(tmp_path / "b.tif", compression=compression)
    assert np.array_equal(np.asarray(open_image(tmp_path / "b.tif", 1)), BYTES[..., 0])
    half = tiff(tmp_path / "c.tif", WIDE[..., :2], photometric="miniswhite", planarconfig="contig", extrasamples=("unspecified",))
    assert np.array_equal(read_raw(half).values, 65535 - first(WIDE[..., :2]))


def test_four_bands_without_the_tag_of_transparency_are_not_composited(tmp_path: Path) -> None:
    """As GDAL and cameras write red, green, blue and near infrared: SamplesPerPixel 4, no ExtraSamples."""
    path = tiff(tmp_path / "a.tif", BYTES, photometric="rgb", extrasamples=("unspecified",))
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags[338]
        content[tag.offset : tag.offset + 2] = struct.pack("<H", 65000)  # ExtraSamples becomes a private tag
    path.write_bytes(content)
    with pytest.raises(BrokenImage, match="has 4 channels, and no tag that makes the last one transparency"):
        open_image(path, 3)
    assert np.array_equal(read_raw(path).values, first(BYTES))
    real = tmp_path / "b.tif"
    Image.fromarray(BYTES).save(real)  # with its tag
    assert open_image(real, 3).mode == "RGB"


def test_lzw_needs_no_other_package_for_gray_and_rgb(tmp_path: Path) -> None:
    gray = tmp_path / "a.tif"
    Image.fromarray(WIDE[..., 0]).save(gray, compression="tiff_lzw")
    assert np.array_equal(read_raw(gray).values[0], WIDE[..., 0])


def png16(array: np.ndarray) -> bytes:
    """A PNG of 16 bits, which Pillow cannot write in color."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_png_of_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png16(WIDE))
    assert np.array_equal(read_raw(path).values, first(WIDE))
    with pytest.raises(BrokenImage, match="more than 8 bits"):
        open_image(path, 3)
    with_alpha = np.concatenate((WIDE, WIDE[..., :1]), axis=2)
    path.write_bytes(png16(with_alpha))
    raw = read_raw(path)
    assert raw.has_alpha
    assert np.array_equal(raw.values, first(with_alpha))
    shown = whole_image(path, 3, ((0.0, 65535.0),) * 3).values
    alpha = WIDE[..., 0] / 65535
    assert np.allclose(shown, first(WIDE / 65535 * alpha[..., None] + 1 - alpha[..., None]), atol=1e-6)
    path.write_bytes(png16(WIDE[..., :2]))
    with pytest.raises(BrokenImage, match="only 8 of its 16 bits can be read"):
        read_raw(path)


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_arrays(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    for array, expected in ((BANDS, first(BANDS)), (first(BANDS), first(BANDS)), (WIDE[..., 0], WIDE[None, ..., 0])):
        np.save(path, array) if ending == "npy" else np.savez(path, array)
        assert np.array_equal(read_raw(path).values, expected)
        assert whole_format(path) == "NUMPY"
    with pytest.raises(BrokenImage, match="is no 8-bit gray or RGB image|not an image"):
        open_image(path, 3)


WRONG = {
    "two arrays": (lambda path: np.savez(path, a=BANDS, b=BANDS), "holds 2 arrays"),
    "pickled": (lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "pickle"),
    "four axes": (lambda path: np.save(path, np.zeros((2, 3, 4, 5))), r"an array of shape \(2, 3, 4, 5\) is no image"),
    "many channels": (lambda path: np.save(path, np.zeros((20, 20, 17))), "is no image"),
    "text": (lambda path: np.save(path, np.array([["a"]])), "which is no image"),
    "cut": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "."),
    "17 bands": (
        lambda path: tiff(path, np.zeros((8, 8, 17), np.uint8), photometric="minisblack", planarconfig="contig"),
        "has 17 channels, more than 16",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_file_gives_its_line(name: str, tmp_path: Path) -> None:
    write, message = WRONG[name]
    path = tmp_path / ("a.npz" if name == "two arrays" else "a.npy")
    write(path)
    with pytest.raises(BrokenImage, match=message):
        read_raw(path)


def test_nothing_is_printed_about_a_damaged_tiff(tmp_path: Path) -> None:
    """Neither libtiff's own lines nor Pillow's reach the terminal."""
    Image.fromarray(WIDE[..., 0]).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[8:200] = bytes(192)
    (tmp_path / "a.tif").write_bytes(content)
    tiff(tmp_path / "b.tif", BANDS, photometric="minisblack", planarconfig="contig")
    program = (
        "import sys; from pathlib import Path; from beitkit.data.decoding.decode import BrokenImage, open_image\n"
        "for name in sys.argv[1:]:\n    try: open_image(Path(name), 3)\n    except BrokenImage: pass"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_a_12_bit_ramp_keeps_its_levels(tmp_path: Path) -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = tiff(tmp_path / "a.tif", ramp, photometric="minisblack")
    image = whole_image(path, 1, ((0.0, 4095.0),))
    assert len(np.unique(image.values)) == 4096
    assert np.allclose(image.values[0], ramp / 4095, atol=1e-7)
    assert whole_image(path, 3, ((0.0, 4095.0),) * 3).values.shape == (3, 64, 64)


def test_channels_have_to_fit(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", BANDS, photometric="minisblack", planarconfig="contig")
    with pytest.raises(BrokenImage, match="has 13 channels, the network takes 4"):
        whole_image(path, 4, ((0.0, 1.0),) * 4)
    assert is_deep(4, None)
    eight = tiff(tmp_path / "b.tif", BYTES, photometric="minisblack", planarconfig="contig")
    assert np.allclose(whole_image(eight, 4).values, first(BYTES) / 255)


def test_what_is_no_number_is_0(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.array([[np.nan, 0.5], [np.inf, -2.0]], np.float32), photometric="minisblack")
    assert whole_image(path, 1, ((0.0, 1.0),)).values.tolist() == [[[0.0, 0.5], [1.0, 0.0]]]


def test_dicom(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels import apply_modality_lut

    stored = RNG.integers(0, 4096, (9, 7)).astype(np.uint16)
    for photometric, is_signed in (("MONOCHROME2", False), ("MONOCHROME1", False), ("MONOCHROME2", True)):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        dataset.Rows, dataset.Columns = stored.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation = int(is_signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-1024"
        dataset.WindowCenter, dataset.WindowWidth = "40", "400"
        pixels = stored.astype(np.int16) - 2048 if is_signed else stored
        dataset.PixelData = pixels.tobytes()
        path = tmp_path / "a.dcm"
        dataset.save_as(path, enforce_file_format=True)
        raw, rescaled = read_raw(path), apply_modality_lut(pixels, dataset)
        if photometric == "MONOCHROME2":
            assert np.array_equal(raw.values[0], rescaled)
            assert raw.window == (-160.0, 240.0)
        else:
            assert np.array_equal(raw.values[0], 2 * (4095 - stored.astype(np.float64)) - 1024)
            ends = 4095 * 2 - 2 * 1024
            assert raw.window == (ends - 240.0, ends + 160.0)
        assert whole_format(path) == "DICOM"


def test_8_bit_files_are_those_of_pillow(tmp_path: Path) -> None:
    image = Image.fromarray(BYTES[..., :3])
    for ending in ("png", "tif", "jpg"):
        image.save(tmp_path / f"a.{ending}")
        expected = np.asarray(Image.open(tmp_path / f"a.{ending}").convert("RGB"))
        assert np.array_equal(read_raw(tmp_path / f"a.{ending}").values, first(expected))
        assert np.array_equal(np.asarray(open_image(tmp_path / f"a.{ending}", 3)), expected)
    assert whole_format(Encoded(Path("a"), io.BytesIO((tmp_path / "a.png").read_bytes()).read())) == "PNG"


@pytest.mark.parametrize("packed", [False, True])
def test_an_array_that_says_it_is_huge_is_refused_by_its_header(tmp_path: Path, packed: bool) -> None:
    """Before memory is spent on it: 8 TB here, of which the file holds nothing."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (2**20, 2**20, 8), "fortran_order": False, "descr": "|u1"})
    path = tmp_path / ("a.npz" if packed else "a.npy")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("image.npy", header.getvalue())
    else:
        path.write_bytes(header.getvalue())
    with pytest.raises(BrokenImage, match=r"its numbers, of shape \(1048576, 1048576, 8\), take \d+ MB decoded, more than 400"):
        read_raw(path)
