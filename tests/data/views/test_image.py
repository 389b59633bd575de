"""Views against the original's golden crop boxes, hand-made references and brute force over seeds."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional as F

from beitkit.configs.data import INCEPTION, Fit, Preprocessing, ViewConfig
from beitkit.data.decoding.decode import BrokenImage, StoredImage, image_to_crop, open_image, to_tensor
from beitkit.data.views.framing import covering_size, cut_away
from beitkit.data.views.image import EvaluationView, PretrainView, ProbeView, TrainView, crop_box
from beitkit.data.views.jitter import color_jittered

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
PLAIN = ViewConfig(color_jitter=0.0, flip=0.0)


def noise(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def assert_near(shown: torch.Tensor, expected: torch.Tensor, tolerance: int = 1) -> None:
    """Equal but for what PyTorch rounds otherwise than Pillow."""
    assert shown.shape == expected.shape
    assert (shown.int() - expected.int()).abs().max() <= tolerance


@pytest.mark.parametrize(("seed", "box"), [(0, (3, 5, 372, 432)), (1, (195, 32, 177, 216)), (2, (0, 2, 373, 482))])
def test_golden_crop_boxes(seed: int, box: tuple[int, int, int, int]) -> None:
    assert crop_box((375, 500), SCALE, RATIO, random.Random(seed)) == box


def test_golden_fallback_boxes() -> None:
    assert crop_box((10, 1000), SCALE, RATIO, random.Random(0)) == (0, 493, 10, 13)
    assert crop_box((1000, 10), SCALE, RATIO, random.Random(0)) == (493, 0, 13, 10)


@pytest.mark.parametrize("image", [(1, 1), (1, 20000), (2, 3), (28, 28), (300, 7)])
def test_crops_lie_inside_and_are_not_empty(image: tuple[int, int]) -> None:
    for seed in range(50):
        top, left, height, width = crop_box(image, SCALE, RATIO, random.Random(seed))
        assert 0 <= top < top + height <= image[0]
        assert 0 <= left < left + width <= image[1]


def test_both_views_show_the_same_crop() -> None:
    image = noise(6, 9).resize((90, 60), Image.Resampling.BICUBIC)
    for seed in range(5):
        views = PretrainView(ViewConfig(color_jitter=0.0), (32, 48), (16, 24))(image, random.Random(seed))
        rng = random.Random(seed)
        top, left, height, width = crop_box((60, 90), SCALE, RATIO, rng)
        crop = image.crop((left, top, left + width, top + height))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert_near(views["images"], to_tensor(crop.resize((48, 32), Image.Resampling.BICUBIC)), 2)
        assert_near(views["token_images"], to_tensor(crop.resize((24, 16), Image.Resampling.LANCZOS)), 2)


def test_no_token_view_without_a_token_size() -> None:
    views = PretrainView(ViewConfig(), (16, 16), None)(noise(20, 20, "L"), random.Random(0))
    assert {key: value.shape for key, value in views.items()} == {"images": (1, 16, 16)}


def test_flips_come_as_often_as_asked() -> None:
    view = PretrainView(ViewConfig(color_jitter=0.0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.3), (9, 9), None)
    image = noise(9, 9)
    upright, flipped = to_tensor(image), to_tensor(image).flip(2)
    shown = [view(image, random.Random(seed))["images"] for seed in range(1000)]
    assert all(torch.equal(view_shown, upright) or torch.equal(view_shown, flipped) for view_shown in shown)
    assert sum(torch.equal(view_shown, flipped) for view_shown in shown) == pytest.approx(300, abs=60)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(28, 28), (50, 31)])
def test_jitter_is_a_chain_of_pillow_enhancements(mode: str, size: tuple[int, int]) -> None:
    image, orders = noise(*size, mode), set()
    for seed in range(20):
        kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, *([ImageEnhance.Color] if mode == "RGB" else [])]
        rng, expected = random.Random(seed), image
        rng.shuffle(kinds)
        orders.add(tuple(kind.__name__ for kind in kinds))
        for kind in kinds:
            expected = kind(expected).enhance(rng.uniform(0.6, 1.4))
        assert np.array_equal(np.array(color_jittered(image, 0.4, random.Random(seed))), np.array(expected))
    assert len(orders) == (6 if mode == "RGB" else 2)


def test_no_jitter_draws_nothing() -> None:
    rng, image = random.Random(0), noise(4, 4)
    assert color_jittered(image, 0.0, rng) is image
    assert rng.random() == random.Random(0).random()


@pytest.mark.parametrize(
    "view",
    [PretrainView(ViewConfig(), (32, 32), (16, 16)), TrainView(ViewConfig(), (28, 28)), TrainView(ViewConfig(), (48, 40))],
)
def test_a_view_depends_on_its_generator_only_and_leaves_the_image_alone(view: PretrainView | TrainView) -> None:
    image = noise(40, 30)
    before = image.tobytes()
    first, again, other = (view(image, random.Random(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["images"], other["images"])
    assert image.tobytes() == before


def test_small_training_images_are_shifted_and_not_cropped() -> None:
    image, seen = noise(28, 28, "L"), set()
    padded = torch.nn.functional.pad(to_tensor(image), (4, 4, 4, 4))
    shifts = {(y, x): padded[:, y : y + 28, x : x + 28] for y in range(9) for x in range(9)}
    for seed in range(300):
        shown = TrainView(PLAIN, (28, 28))(image, random.Random(seed))["images"]
        matches = [shift for shift, expected in shifts.items() if torch.equal(shown, expected)]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) > 70  # of 81
    assert TrainView(PLAIN, (32, 24))(noise(50, 9), random.Random(0))["images"].shape == (3, 32, 24)


def test_large_training_images_are_cropped() -> None:
    image = noise(70, 50)
    shown = TrainView(PLAIN, (40, 40))(image, random.Random(3))["images"]
    top, left, height, width = crop_box((70, 50), SCALE, RATIO, random.Random(3))
    crop = image.crop((left, top, left + width, top + height)).resize((40, 40), Image.Resampling.BICUBIC)
    assert_near(shown, to_tensor(crop))


@pytest.mark.parametrize(
    ("image", "size", "share", "expected"),
    [
        ((375, 500), (224, 224), 0.875, (256, 341)),  # int(256 * 500 / 375)
        ((500, 333), (224, 224), 0.875, (384, 256)),
        ((300, 300), (384, 384), 1.0, (384, 384)),
        ((480, 640), (128, 384), 1.0, (288, 384)),  # a wide network: the width decides
        ((100, 1000), (128, 384), 1.0, (128, 1280)),
    ],
)
def test_covering_size(image: tuple[int, int], size: tuple[int, int], share: float, expected: tuple[int, int]) -> None:
    assert covering_size(image, size, share) == expected


def test_evaluation_is_resize_then_center_crop() -> None:
    image = noise(75, 100)
    shown = EvaluationView(Preprocessing(crop_share=0.875), (56, 56))(image, random.Random(0))["images"]
    resized = image.resize((85, 64), Image.Resampling.BICUBIC)  # short side 56 / 0.875, long side int(64 * 100 / 75)
    left, top = round((85 - 56) / 2), round((64 - 56) / 2)
    assert torch.equal(shown, to_tensor(resized.crop((left, top, left + 56, top + 56))))


def test_small_evaluation_images_are_not_cropped() -> None:
    image = noise(32, 32)
    assert torch.equal(EvaluationView(INCEPTION, (32, 32))(image, random.Random(0))["images"], to_tensor(image))
    scaled = to_tensor(image.resize((24, 28), Image.Resampling.BICUBIC))
    assert torch.equal(EvaluationView(INCEPTION, (28, 24))(image, random.Random(0))["images"], scaled)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (20000, 1), (3, 2), (1000, 40)])
@pytest.mark.parametrize("size", [(48, 48), (64, 40), (28, 28)])
def test_every_view_takes_every_shape(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = noise(*shape)
    for view in (PretrainView(ViewConfig(), size, (24, 24)), TrainView(ViewConfig(), size), EvaluationView(INCEPTION, size)):
        assert view(image, random.Random(0))["images"].shape == (3, *size)


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_sees_a_bilinear_crop_flipped_or_not(seed: int) -> None:
    image = noise(40, 50)
    seen = ProbeView((24, 16))(image, random.Random(seed))["images"]
    rng = random.Random(seed)
    box = crop_box((40, 50), SCALE, RATIO, rng)
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert_near(seen, to_tensor(crop.resize((16, 24), Image.Resampling.BILINEAR)))


def saved_jpeg(path: Path, height: int, width: int, orientation: int = 1) -> Path:
    """A photograph-like image: smooth waves."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / period) + np.cos((y + x) / (period + 7)) for period in (62, 94, 122)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.stack([127 + 60 * wave for wave in waves], 2).astype(np.uint8)).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(90, 130), (601, 803)])
def test_a_stored_jpeg_is_seen_as_a_decoded_one(tmp_path: Path, size: tuple[int, int], orientation: int) -> None:
    path = saved_jpeg(tmp_path / "a.jpg", *size, orientation)
    stored, image = image_to_crop(path, 3), open_image(path, 3)
    assert isinstance(stored, StoredImage)
    assert (stored.height, stored.width) == (image.height, image.width)
    for view in (PretrainView(ViewConfig(), (48, 48), (24, 24)), TrainView(ViewConfig(), (48, 48)), ProbeView((48, 48))):
        for seed in range(3):
            seen, expected = view(stored, random.Random(seed)), view(image, random.Random(seed))
            for key in expected:
                difference = (seen[key].int() - expected[key].int()).abs().float()
                # Small images are decoded whole; of the large one the box is rounded to whole reduced pixels.
                assert difference.mean() < (1e-6 if size[0] < 96 else 3)


def test_the_tokenizers_view_alone_is_the_one_of_both(tmp_path: Path) -> None:
    stored = image_to_crop(saved_jpeg(tmp_path / "a.jpg", 601, 803), 3)
    for seed in range(3):  # the backbone's view asks for finer pixels than the tokenizer's alone would
        both = PretrainView(ViewConfig(), (96, 96), (24, 24))(stored, random.Random(seed))
        alone = PretrainView(ViewConfig(), (96, 96), (24, 24), only_tokens=True)(stored, random.Random(seed))
        assert list(alone) == ["token_images"]
        assert torch.equal(alone["token_images"], both["token_images"])


def test_pixels_are_decoded_only_as_finely_as_asked(tmp_path: Path) -> None:
    stored = image_to_crop(saved_jpeg(tmp_path / "a.jpg", 640, 480), 3)
    assert isinstance(stored, StoredImage)
    assert [stored.decoded(reduction).height for reduction in (1, 2, 3, 4, 7, 8, 20)] == [640, 320, 320, 160, 160, 80, 80]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "squeeze", "letterbox"])
@pytest.mark.parametrize("network", [(48, 64), (24, 24)])
def test_evaluation_sees_a_reduced_jpeg_where_the_whole_one_is(
    tmp_path: Path, network: tuple[int, int], fit: Fit, orientation: int
) -> None:
    """Brightness tells where a pixel is: at 1/8 the last or first pixels are half empty, which would move a ramp by 2 levels."""
    y, x = np.mgrid[:603, :805]
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramps = np.stack([x * 255 / 804, y * 255 / 602, 0 * x], 2)
    Image.fromarray(ramps.round().astype(np.uint8)).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    stored, view = image_to_crop(tmp_path / "a.jpg", 3), EvaluationView(Preprocessing(fit=fit), network)
    assert isinstance(stored, StoredImage)
    seen = view(stored, random.Random(0))["images"]
    assert set(stored.kept) <= ({8} if network == (24, 24) else {2, 4})
    expected = view(open_image(tmp_path / "a.jpg", 3), random.Random(0))["images"]
    assert (seen.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_evaluation_of_a_jpeg_that_is_not_reduced_is_exact(tmp_path: Path, orientation: int) -> None:
    path = saved_jpeg(tmp_path / "a.jpg", 190, 250, orientation)
    view = EvaluationView(INCEPTION, (48, 48))  # 3.4 times as small as it is shown
    expected = view(open_image(path, 3), random.Random(0))["images"]
    assert torch.equal(view(image_to_crop(path, 3), random.Random(0))["images"], expected)


def test_half_a_jpeg_is_refused_at_any_size(tmp_path: Path) -> None:
    path = saved_jpeg(tmp_path / "a.jpg", 640, 480)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\xff\xd9")
    with pytest.raises(BrokenImage):
        EvaluationView(INCEPTION, (24, 24))(image_to_crop(path, 3), random.Random(0))


def test_jitter_of_a_crop_is_the_crop_of_the_jittered_image() -> None:
    image = Image.fromarray(np.array(noise(30, 40).resize((400, 300))))
    for seed in range(10):
        seen = PretrainView(ViewConfig(flip=0.0), (32, 32), None)(image, random.Random(seed))["images"]
        rng = random.Random(seed)
        jittered = color_jittered(image, 0.4, rng)
        top, left, height, width = crop_box((300, 400), SCALE, RATIO, rng)
        crop = jittered.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BICUBIC)
        assert_near(seen, to_tensor(crop), 2)


def test_a_letterbox_shows_the_whole_image_between_bars_of_the_mean_color() -> None:
    image = noise(40, 120)
    preprocessing = Preprocessing(mean=(0.5, 0.25, 0.0), crop_share=1.0, fit="letterbox")
    shown = EvaluationView(preprocessing, (48, 60))(image, random.Random(0))["images"]
    assert torch.equal(shown[:, 14:34], to_tensor(image.resize((60, 20), Image.Resampling.BICUBIC)))  # 120 -> 60, 40 -> 20
    bars = torch.tensor([128, 64, 0], dtype=torch.uint8).view(3, 1, 1)
    assert (shown[:, :14] == bars).all()
    assert (shown[:, 34:] == bars).all()
    # A crop share below 1 makes the image larger first, and what is then too long is cut.
    shown = EvaluationView(replace(preprocessing, crop_share=0.5), (48, 60))(image, random.Random(0))["images"]
    resized = to_tensor(image.resize((120, 40), Image.Resampling.BICUBIC))
    assert torch.equal(shown[:, 4:44], resized[:, :, 30:90])


def test_a_letterbox_of_a_gray_or_a_small_image() -> None:
    gray = EvaluationView(Preprocessing(mean=(0.2, 0.4, 0.6), crop_share=1.0, fit="letterbox"), (16, 16))
    shown = gray(noise(8, 16, "L"), random.Random(0))["images"]
    assert (shown[0, :4] == 102).all()  # 0.4 * 255
    assert torch.equal(shown[0, 4:12], to_tensor(noise(8, 16, "L"))[0])
    assert gray(noise(1, 20000, "L"), random.Random(0))["images"].shape == (1, 16, 16)


@pytest.mark.parametrize("fit", ["crop", "squeeze", "letterbox"])
@pytest.mark.parametrize("share", [1.0, 0.875])
@pytest.mark.parametrize("size", [(56, 56), (48, 96)])
@pytest.mark.parametrize("image", [(100, 100), (60, 240), (240, 90)])
def test_what_is_cut_away_is_what_is_not_seen(fit: Fit, share: float, size: tuple[int, int], image: tuple[int, int]) -> None:
    # Rows and then columns are numbered by their values; those that leave no trace are cut away.
    preprocessing = Preprocessing(mean=(0.0, 0.0, 0.0), crop_share=share, fit=fit, filter="box")
    view = EvaluationView(preprocessing, size)
    seen = []
    for axis in (0, 1):
        ramp = np.arange(1, image[axis] + 1, dtype=np.float64) / image[axis] * 250
        pixels = np.broadcast_to(ramp[:, None] if axis == 0 else ramp[None], image).astype(np.uint8)
        values = view(Image.fromarray(pixels), random.Random(0))["images"].double()
        lines = values[0].amax(1 - axis)
        lines = lines[lines > 0]  # no bars; each is the mean of what became one row or column
        seen.append(min(1.0, (lines.max() - lines.min()).item() / 250 * len(lines) / (len(lines) - 1)))
    assert cut_away(image, size, preprocessing) == pytest.approx(1 - seen[0] * seen[1], abs=0.03)


def test_what_is_cut_away_of_known_shapes() -> None:
    assert cut_away((100, 300), (224, 224), Preprocessing(crop_share=1.0)) == pytest.approx(2 / 3, abs=0.01)
    assert cut_away((100, 300), (224, 224), Preprocessing(crop_share=1.0, fit="squeeze")) == 0
    assert cut_away((100, 300), (224, 224), Preprocessing(crop_share=1.0, fit="letterbox")) == 0
    assert cut_away((100, 300), (24, 24), Preprocessing()) == 0  # small networks see whole images


def test_a_shifted_image_by_numpy() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (12, 16, 3)).astype(np.uint8)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    expected = {(top, left): padded[top : top + 12, left : left + 16] for top in range(5) for left in range(5)}
    view = PretrainView(ViewConfig(shift=2, flip=0.0, color_jitter=0.0), (12, 16), (6, 8))
    seen = set()
    for seed in range(300):
        shown = view(Image.fromarray(pixels), random.Random(seed))
        array = shown["images"].permute(1, 2, 0).numpy()
        (place,) = [place for place, one in expected.items() if np.array_equal(one, array)]
        seen.add(place)
        token_view = F.interpolate(shown["images"][None], (6, 8), mode="bicubic", antialias=True)[0]
        assert (token_view.float() - shown["token_images"].float()).abs().mean() < 12  # the same part, by another filter
    assert seen == set(expected)
    flipped = PretrainView(ViewConfig(shift=0, flip=1.0, color_jitter=0.0), (12, 16), None)(
        Image.fromarray(pixels), random.Random(0)
    )
    assert np.array_equal(flipped["images"].permute(1, 2, 0).numpy(), pixels[:, ::-1])


def test_a_shift_is_in_pixels_of_what_is_shown() -> None:
    """An image of twice the size moves twice as far, so that after resizing the shift is whole pixels."""
    pixels = np.random.default_rng(0).integers(1, 256, (16, 16, 3)).astype(np.uint8)
    large = Image.fromarray(pixels.repeat(2, 0).repeat(2, 1))
    view = PretrainView(ViewConfig(shift=3, flip=0.0, color_jitter=0.0), (16, 16), None)
    for seed in range(20):
        shown = view(large, random.Random(seed))["images"].float()
        alone = view(Image.fromarray(pixels), random.Random(seed))["images"].float()
        assert (shown - alone).abs().mean() < 30 < (shown - alone.roll(1, 2)).abs().mean()


def test_a_classifier_moves_as_far_as_it_is_told() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (28, 28, 3)).astype(np.uint8)
    plain = ViewConfig(flip=0.0, color_jitter=0.0)

    def black_lines(view: ViewConfig) -> int:
        shown = [TrainView(view, (28, 28))(Image.fromarray(pixels), random.Random(seed))["images"] for seed in range(200)]
        return max(int((image.sum((0, 2)) == 0).sum()) for image in shown)

    assert [black_lines(replace(plain, shift=most)) for most in (None, 0, 1, 6)] == [4, 0, 1, 6]
    moved = [TrainView(replace(plain, shift=2), (40, 40))(Image.fromarray(pixels), random.Random(s))["images"] for s in range(9)]
    assert len({image.sum().item() for image in moved}) > 3
