"""Recipes against the tables they come from, typed here once more from docs/method.md (2.4 and 5.3), and their mechanism."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from beitkit.cli import main
from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import NO_AUGMENT
from beitkit.errors import UserError
from beitkit.runs.finetune.choose import FinetuneFacts, choose
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.recipes import finetuning, pretraining, segmentation, supervised
from beitkit.runs.recipes.run import command
from beitkit.runs.recipes.table import RECIPES, recipe_named
from beitkit.train.schedule import make_schedule

IN1K, IN22K = 1_281_167, 14_197_122

# Size, epochs, warm-up (epochs, or steps), clip, drop path, beta 2, relative positions, LayerScale, statistics, smallest crop,
# block of the class-token branch. The batch is 2048, the rate 1.5e-3 falling to 1e-5, the weight decay 0.05 in all of them.
PRETRAINING = {
    "pretrain-base-in1k-300": ("base", 300, 10, 3.0, 0.1, 0.999, "none", None, "imagenet", 0.08, None),
    "pretrain-base-in1k": ("base", 800, 10, 3.0, 0.1, 0.999, "none", None, "imagenet", 0.08, None),
    "pretrain-large-in1k": ("large", 800, 10, 1.0, 0.1, 0.999, "none", None, "imagenet", 0.08, None),
    "pretrain-base-in1k-code": ("base", 800, 10, 3.0, 0.1, 0.999, "shared", 0.1, "imagenet", 0.08, None),
    "pretrain-base-in22k": ("base", 150, 10_000, 3.0, 0.1, 0.999, "shared", 0.1, "inception", 0.08, None),
    "pretrain-large-in22k": ("large", 150, 10_000, 1.0, 0.1, 0.999, "shared", 1e-5, "inception", 0.08, None),
    "pretrain-v2-base": ("base", 1600, 10, 3.0, 0.1, 0.999, "shared", 0.1, "imagenet", 0.2, 9),
    "pretrain-v2-base-300": ("base", 300, 10, 3.0, 0.0, 0.98, "shared", 0.1, "imagenet", 0.2, 9),
    "pretrain-v2-large": ("large", 1600, 10, 3.0, 0.1, 0.999, "shared", 1e-5, "imagenet", 0.2, 21),
    "pretrain-v2-large-300": ("large", 300, 10, 3.0, 0.0, 0.98, "shared", 1e-5, "imagenet", 0.2, 21),
}
# Batch, rate, warm-up epochs, epochs, layer decay, drop path, weight decay, clip.
FINETUNING = {
    "finetune-base-in1k": (1024, 4e-3, 20, 100, 0.65, 0.1, 0.05, None),
    "finetune-large-in1k": (1024, 2e-3, 5, 50, 0.75, 0.1, 0.05, None),
    "finetune-base-cifar100": (512, 4e-3, 20, 150, 0.65, 0.1, 0.3, None),
    "finetune-base-pt22k": (1024, 4e-3, 20, 100, 0.65, 0.1, 0.05, None),
    "finetune-large-pt22k": (1024, 1e-3, 5, 50, 0.75, 0.2, 0.05, None),
    "finetune-base-in22k": (2048, 3e-3, 5, 90, 0.65, 0.2, 0.05, 3.0),
    "finetune-large-in22k": (2048, 2e-3, 5, 90, 0.75, 0.2, 0.05, 1.0),
    "finetune-base-pt22k-ft22k": (512, 2e-5, 5, 30, 0.85, 0.1, 1e-8, None),
    "finetune-base-pt22k-ft22k-384": (512, 2e-5, 5, 30, 0.85, 0.1, 1e-8, None),
    "finetune-large-pt22k-ft22k": (512, 2e-5, 5, 30, 0.9, 0.4, 1e-8, None),
    "finetune-large-pt22k-ft22k-384": (512, 2e-5, 5, 30, 0.9, 0.4, 1e-8, None),
    "finetune-large-pt22k-ft22k-512": (512, 2e-5, 5, 30, 0.9, 0.4, 1e-8, None),
    "finetune-v2-base": (1024, 5e-4, 20, 100, 0.6, 0.2, 0.05, None),
    "finetune-v2-base-300": (1024, 5e-4, 20, 100, 0.65, 0.1, 0.05, None),
    "finetune-v2-large": (1024, 2e-4, 5, 50, 0.8, 0.2, 0.05, None),
    "finetune-v2-large-300": (1024, 5e-4, 5, 50, 0.8, 0.2, 0.05, None),
    "finetune-v2-base-in21k": (4096, 6e-4, 20, 90, 0.75, 0.1, 0.05, None),
    "finetune-v2-large-in21k": (4096, 6e-4, 20, 90, 0.75, 0.2, 0.05, None),
    "finetune-v2-base-ft21k": (1024, 5e-5, 20, 30, 0.75, 0.1, 0.05, None),
    "finetune-v2-large-ft21k": (1024, 7e-5, 5, 20, 0.8, 0.25, 0.05, None),
    "finetune-dit-base-rvlcdip": (1024, 5e-4, 20, 180, 0.75, 0.2, 0.05, 1.0),
    "scratch-base-in1k": (1024, 1e-3, 5, 300, 1.0, 0.1, 0.05, None),
    "scratch-small-in1k": (1024, 1e-3, 5, 300, 1.0, 0.1, 0.05, None),
    "supervised-base-in22k": (4096, 1e-3, 3, 90, 1.0, 0.1, 0.03, 1.0),
}
OURS = {"finetune-base-in1k-384", "finetune-large-in1k-384", "supervised-base-in1k-384"}
"""Recipes of which too little was published for a row."""


def test_no_two_rows_have_one_name() -> None:
    rows = (*pretraining.PRETRAINING, *finetuning.FINETUNING, *supervised.SUPERVISED, *segmentation.SEGMENTATION)
    assert [row.name for row in rows] == list(RECIPES)
    assert len(rows) == 49


def test_every_recipe_has_a_row() -> None:
    others = {name for name, recipe in RECIPES.items() if recipe.verb == "segment"}  # test_segmentation.py
    assert set(RECIPES) - others == set(PRETRAINING) | {"dit-base", "dit-large"} | set(FINETUNING) | OURS


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_but_for_its_paths(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe.config
    assert config.recipe == name
    assert from_json(type(config), to_json(config)) == config
    is_fresh = isinstance(config, PretrainRun) or config.scratch
    paths = {"images", "out"} if is_fresh else {"images", "model", "out"}
    assert set(recipe.paths) == paths
    assert recipe.what.endswith(".")
    assert all((recipe.source, recipe.published, recipe.hardware))
    # Where the recipe says what it reproduces, its own batch gets the published rate.
    assert config.train.batch_size * config.loop.accumulate == int(recipe.batch.partition(" ")[0])


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_recipes_are_the_published_ones(name: str) -> None:
    size, epochs, warmup, clip, drop_path, beta2, positions, scale, statistics, smallest_crop, branch = PRETRAINING[name]
    config = RECIPES[name].config
    assert isinstance(config, PretrainRun)
    images = IN22K if "22k" in name else IN1K
    schedule = make_schedule(config.train, config.loop, config.optim, images, default_epochs=1)
    assert schedule.images_per_step == 2048
    assert (schedule.lr, schedule.min_lr) == (1.5e-3, 1e-5)
    assert schedule.steps == round(epochs * images / 2048)
    assert schedule.warmup == (warmup if warmup > 1000 else round(warmup * images / 2048))
    assert (config.size, config.image_size, config.patch) == (size, 224, 16)
    assert (config.optim.clip, config.optim.betas, config.optim.weight_decay) == (clip, (0.9, beta2), 0.05)
    assert (config.network.drop_path, config.network.positions) == (drop_path, positions)
    usual = {"base": 0.1, "large": 1e-5}[size]
    assert (usual if config.network.layer_scale is None else config.network.layer_scale or None) == scale
    assert config.network.normalization == statistics
    assert config.view.crop_scale == (smallest_crop, 1.0)
    assert (config.view.color_jitter, config.view.flip) == (0.4, 0.5)
    assert round(config.mask.ratio * 196) == 75
    assert round(config.mask.min_block * 196) == 16
    assert config.mask.kind == ("official" if branch is None else "block")
    assert config.cls_branch == branch


@pytest.mark.parametrize("size", ["base", "large"])
def test_dit_is_the_published_one(size: str) -> None:
    """DiT, section 4.2, on 42 million pages."""
    config = RECIPES[f"dit-{size}"].config
    assert isinstance(config, PretrainRun)
    schedule = make_schedule(config.train, config.loop, config.optim, 42_000_000, default_epochs=1)
    assert (schedule.images_per_step, schedule.steps, schedule.warmup, schedule.lr) == (2048, 500_000, 10_000, 1e-3)
    assert (config.optim.betas, config.optim.weight_decay) == ((0.9, 0.999), 0.05)
    network = config.network
    assert (config.size, network.positions, network.layer_scale, network.drop_path) == (size, "none", 1e-5, 0.1)
    assert network.normalization == "inception"
    assert (config.mask.kind, round(config.mask.ratio * 196)) == ("official", 75)


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_recipes_are_the_published_ones(name: str) -> None:
    batch, lr, warmup, epochs, layer_decay, drop_path, weight_decay, clip = FINETUNING[name]
    config = RECIPES[name].config
    assert isinstance(config, FinetuneRun)
    schedule = make_schedule(config.train, config.loop, config.optim, IN1K, default_epochs=1)
    assert schedule.images_per_step == batch
    assert schedule.lr == pytest.approx(lr, rel=1e-9)
    assert schedule.min_lr == pytest.approx(1e-5 if "scratch" in name else 1e-6, rel=1e-9)
    assert schedule.steps == round(epochs * IN1K / batch)
    assert schedule.warmup == pytest.approx(warmup * IN1K / batch, abs=1.5)
    assert (config.optim.layer_decay, config.optim.weight_decay, config.optim.clip) == (layer_decay, weight_decay, clip)
    assert config.optim.betas == (0.9, 0.999)
    assert (config.drop_path, config.label_smoothing) == (drop_path, 0.1)


NOT_MIXING = {
    "finetune-base-in22k", "finetune-large-in22k", "finetune-base-pt22k-ft22k", "finetune-base-pt22k-ft22k-384",
    "finetune-large-pt22k-ft22k", "finetune-large-pt22k-ft22k-384", "finetune-large-pt22k-ft22k-512", "finetune-v2-base-ft21k",
    "finetune-v2-large-ft21k", "supervised-base-in1k-384", "supervised-base-in22k",
    "finetune-dit-base-rvlcdip",
}  # fmt: skip
REPEATING = {"finetune-base-in1k", "finetune-base-in1k-384", "scratch-base-in1k", "scratch-small-in1k"}
"""Repeated augmentation: the paper's base network, and DeiT."""


@pytest.mark.parametrize("name", [*FINETUNING, *sorted(OURS)])
def test_augmentation_and_sizes_are_the_published_ones(name: str) -> None:
    config = RECIPES[name].config
    assert isinstance(config, FinetuneRun)
    augment = config.augment
    if name == "supervised-base-in22k":
        assert augment == NO_AUGMENT
    else:
        assert (augment.operations, augment.magnitude, augment.magnitude_std) == (2, 9.0, 0.5)
        assert augment.erasing == (0.0 if "cifar" in name else 0.25)
    assert (augment.mixup, augment.cutmix) == ((0.0, 0.0) if name in NOT_MIXING else (0.8, 1.0))
    assert augment.repeats == (3 if name in REPEATING else 1)
    size = next((size for size in (384, 512) if name.endswith(str(size))), 224)
    assert (config.image_size, config.crop_share) == (size, 0.875 if size == 224 else 1.0)
    assert config.loop.ema == (0.99996 if name.startswith("scratch") else 0.0)
    if config.scratch:
        plain = ("cls", "none", 0.0)
        assert (config.pooling, config.network.positions, config.network.layer_scale) == plain
        assert config.network.normalization == ("inception" if "22k" in name else "imagenet")
        assert (config.size, config.patch) == ("small" if "small" in name else "base", 16)


def test_nothing_in_a_recipe_is_left_to_be_chosen() -> None:
    found = FinetuneFacts(
        images=IN1K, side=400, imbalance=1.0, width=768, depth=12, patch=16, image_size=None, crop_share=0.875, device="cuda"
    )
    for name in (*FINETUNING, *OURS):
        config = RECIPES[name].config
        assert isinstance(config, FinetuneRun)
        # A start that is a classifier keeps its own pooling and head.
        assert choose(config, replace(found, has_head=config.pooling is None)) == (config, ()), name


def test_the_rate_follows_another_batch() -> None:
    assert "0.0015 at 2048 images a step (sqrt): 0.0015 at 2048, 0.00106 at 1024" in RECIPES["pretrain-base-in1k"].rate
    assert "0.0005 at 512 images a step (linear): 0.001 at 1024, 0.0005 at 512" in RECIPES["scratch-base-in1k"].rate


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="there is no recipe 'pretrain-base-in1', did you mean 'pretrain-base-in1k'"):
        recipe_named("pretrain-base-in1")


def test_a_recipe_of_another_verb_is_refused() -> None:
    with pytest.raises(UserError, match="'finetune-base-pt22k' is for beitkit finetune, not for pretrain; beitkit recipes lists"):
        recipe_named("finetune-base-pt22k", "pretrain")


def test_a_length_or_warmup_in_another_unit_takes_the_recipes_place() -> None:
    train = recipe_named("pretrain-base-in22k", "pretrain").config_without({"steps"}).train
    assert (train.epochs, train.batch_size) == (None, 64)
    optim = recipe_named("pretrain-base-in22k", "pretrain").config_without({"optim.warmup_epochs"}).optim
    assert (optim.warmup_steps, optim.warmup_epochs) == (None, 10.0)
    assert recipe_named("pretrain-base-in22k", "pretrain").config_without({"lr"}) == RECIPES["pretrain-base-in22k"].config


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_list_names_every_recipe_and_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(["recipes", "--all"], capsys)
    for name in RECIPES:
        assert f"\n{name} " in table
    described = json.loads(printed(["recipes", "--json"], capsys))
    assert [one["name"] for one in described] == list(RECIPES)
    assert all(one["measured"] is None and one["published"] for one in described)


@pytest.mark.parametrize("columns", [80, 100])
def test_all_names_fit_one_screen(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = printed(["recipes"], capsys).splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= columns
    listed = [word for line in lines if line.startswith("  ") for word in line.split()]
    assert sorted(listed) == sorted(RECIPES)


def test_a_word_describes_the_recipes_with_it_in_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [name for name in RECIPES if "v2" in name]
    table = printed(["recipes", "v2"], capsys)
    assert all((f"\n{name} " in table) == (name in wanted) for name in RECIPES)
    assert [one["name"] for one in json.loads(printed(["recipes", "v2", "--json"], capsys))] == wanted


def test_one_recipe_is_shown_in_full_with_the_line_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["recipes", "pretrain-v2-base"], capsys)
    line = "beitkit pretrain IMAGES --recipe pretrain-v2-base --tokenizer TOKENIZER --out runs/pretrain-v2-base"
    assert text.endswith(f"Next: {line}\n")
    assert '"cls_branch": 9' in text
    one = json.loads(printed(["recipes", "pretrain-v2-base", "--json"], capsys))
    assert one["command"] == line
    assert one["config"]["train"]["epochs"] == 1600
    assert command(RECIPES["finetune-base-pt22k"]).endswith(
        "finetune LABELED --recipe finetune-base-pt22k --model MODEL --out runs/finetune-base-pt22k"
    )


def test_help_shows_the_recipes_values(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(["pretrain", "--recipe", "pretrain-large-in1k", "--help"], capsys).split())
    assert "(default: large)" in text
    assert "(default: 800.0)" in text


@pytest.mark.parametrize("arguments", [["recipes"], ["pretrain", "--recipe=pretrain-base-in1k", "--help"]])
def test_recipes_do_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom beitkit.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
