"""What is found out about the pixels of a list before it is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from beitkit.configs.data import IMAGENET, Preprocessing
from beitkit.data.sources.find import find_images
from beitkit.data.survey import Survey, described, name_other_ranges, preprocessing_for, survey
from beitkit.errors import UserError

RNG = np.random.default_rng(0)


def write(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for array in arrays:
        name, many = f"{len(list(folder.iterdir()))}.tif", array.ndim == 3
        options = {"photometric": "minisblack"} | ({"planarconfig": "contig"} if many else {})
        tifffile.imwrite(folder / name, array, **options)
    return folder


def lines(
    folder: Path, channels: int, base: Preprocessing = IMAGENET, **options: object
) -> tuple[Survey, Preprocessing, list[str]]:
    found = survey(find_images(folder), is_range_given="value_range" in options)
    result = preprocessing_for(found, base, channels, **options)
    return found, result, described(found, result, channels)


def test_a_12_bit_set_in_16_bit_files_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    ramps = [np.roll(np.arange(4096, dtype=np.uint16), shift).reshape(64, 64) for shift in (0, 100)]
    found, result, said = lines(write(tmp_path / "set", *ramps), 3)
    assert (found.channels, found.kind, found.is_deep) == (1, "uint16", True)
    assert result.value_range is not None
    ((low, high), *_) = result.value_range
    assert low == pytest.approx(4.1, abs=0.5)
    assert high == pytest.approx(4090.9, abs=0.5)
    levels = np.unique(((ramps[0] - low) / (high - low)).clip(0, 1))
    assert len(levels) >= 4000
    assert said[0].startswith("pixels: 3 channels of uint16, values 4 to 4,091 are")
    assert "percentiles 0.1 and 99.9 of 2 of 2 images" in said[0]
    assert (result.mean, result.std) == (IMAGENET.mean, IMAGENET.std)


def test_a_given_range_is_taken_and_a_small_part_of_it_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", RNG.integers(0, 200, (32, 32)).astype(np.uint16))
    _, result, said = lines(folder, 1, value_range=(0.0, 4095.0))
    assert result.value_range == ((0.0, 4095.0),)
    assert said[0].endswith("values 0 to 4,095 are shown as 0 to 1 (as given, or as the model has it)")
    assert said[1].startswith("note: the images use 0 to 199 of 0 to 4,095, 4.9% of their range; ")
    _, _, said = lines(folder, 1, value_range=(0.0, 20.0))
    assert "of the images' values lie outside of 0 to 20, and are cut off" in said[1]


def test_a_dark_8_bit_set_is_named_and_others_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    (tmp_path / "set").mkdir()
    Image.fromarray(RNG.integers(0, 17, (40, 40, 3)).astype(np.uint8)).save(tmp_path / "dark" / "a.png")
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(tmp_path / "set" / "a.png")
    _, result, said = lines(tmp_path / "dark", 3)
    assert result == IMAGENET
    assert "the images use 0 to 16 of 0 to 255, 6.3% of their range" in said[0]
    assert lines(tmp_path / "set", 3)[2] == []


def test_own_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    bands = RNG.integers(1000, 3000, (64, 64, 5)).astype(np.uint16)
    bands[..., 2] //= 2
    folder = write(tmp_path / "set", bands)
    found = survey(find_images(folder), with_values=True)
    result = preprocessing_for(found, IMAGENET, 5, value_range=(0.0, 4000.0), own_statistics=True)
    truth = (bands / 4000.0).reshape(-1, 5)
    assert result.mean == pytest.approx(truth.mean(0), abs=1e-6)
    assert result.std == pytest.approx(truth.std(0), abs=1e-6)
    plain = tmp_path / "plain"
    plain.mkdir()
    pixels = RNG.integers(0, 256, (60, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(plain / "a.png")
    result = preprocessing_for(survey(find_images(plain), with_values=True), IMAGENET, 3, own_statistics=True)
    assert result.value_range is None
    assert result.mean == pytest.approx((pixels / 255).reshape(-1, 3).mean(0), abs=1e-6)


def test_other_channels_average_the_statistics_and_8_bits_keep_their_range(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", RNG.integers(0, 256, (16, 20, 4)).astype(np.uint8))
    found, result, said = lines(folder, 4)
    assert found.channels == 4
    assert result.value_range == ((0.0, 255.0),) * 4
    assert result.mean == pytest.approx((sum(IMAGENET.mean) / 3,) * 4)
    assert "all that 8 bits hold" in said[0]


def test_images_of_different_kinds_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", RNG.integers(0, 4096, (16, 20, 4)).astype(np.uint16))
    write(folder, RNG.integers(0, 4096, (16, 20, 13)).astype(np.uint16))
    with pytest.raises(UserError, match=r"0.tif has 4 channels, but .*1.tif 13"):
        survey(find_images(folder))
    mixed = write(tmp_path / "mixed", RNG.integers(0, 4096, (16, 20)).astype(np.uint16))
    Image.new("L", (9, 9)).save(mixed / "a.png")
    with pytest.raises(UserError, match=r"a.png has 8 bits a channel, but .*0.tif more"):
        survey(find_images(mixed))
    assert survey(find_images(mixed), is_range_given=True).channels == 1


def test_images_of_another_range_than_the_network_s_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranges = ((0.0, 4095.0),)
    name_other_ranges(find_images(write(tmp_path / "same", RNG.integers(0, 4096, (16, 16)).astype(np.uint16))), ranges)
    assert capsys.readouterr().err == ""
    (tmp_path / "eight").mkdir()
    Image.fromarray(RNG.integers(0, 256, (16, 16)).astype(np.uint8)).save(tmp_path / "eight" / "a.png")
    name_other_ranges(find_images(tmp_path / "eight"), ranges)
    assert "a.png holds values" in capsys.readouterr().err
    name_other_ranges(find_images(write(tmp_path / "wide", RNG.integers(0, 65536, (16, 16)).astype(np.uint16))), ranges)
    err = capsys.readouterr().err
    assert "note: 1 of 1 images looked at are of another range than the network's" in err
    assert "the network's images 0 to 4,095" in err


def test_the_windows_of_dicom_files_are_the_range(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    for number, (center, width) in enumerate([(40, 400), (60, 300)]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 9, 7, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
        dataset.WindowCenter, dataset.WindowWidth = str(center), str(width)
        dataset.PixelData = RNG.integers(0, 4096, (9, 7)).astype(np.uint16).tobytes()
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    _, result, said = lines(tmp_path, 1)
    assert result.value_range == ((-160.0, 240.0),)
    assert "values -160 to 240 are shown as 0 to 1 (the windows of 2 of 2 images)" in said[0]
