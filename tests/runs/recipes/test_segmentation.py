"""Segmentation recipes against the released configs, typed here from method 7.4."""

import pytest

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.train import resolved
from beitkit.errors import UserError
from beitkit.runs.recipes.segmentation import SEGMENTATION
from beitkit.runs.recipes.table import RECIPES, recipe_named
from beitkit.runs.segment.config import SegmentRun
from beitkit.train.schedule import make_schedule

# crop, drop path, rate, layer decay
PUBLISHED = {
    "segment-base-512-from-ft22k": (512, 0.1, 3e-5, 0.9),
    "segment-base-512-from-pt": (512, 0.1, 7e-4, 0.65),
    "segment-base-640-from-ft22k": (640, 0.1, 3e-5, 0.9),
    "segment-large-512-from-ft22k": (512, 0.2, 2e-5, 0.95),
    "segment-large-640-from-ft22k": (640, 0.2, 2e-5, 0.95),
    "segment-v2-base-512": (512, 0.15, 5e-5, 0.75),
    "segment-v2-base-512-from-ft21k": (512, 0.15, 5e-5, 0.85),
    "segment-v2-large-512": (512, 0.2, 4e-5, 0.9),
    "segment-v2-large-512-from-ft21k": (512, 0.2, 3e-5, 0.9),
    "segment-base-setr": (512, 0.1, 1e-3, 0.65),
}


def test_every_published_row_is_there_and_nothing_else() -> None:
    assert {recipe.name for recipe in SEGMENTATION} == set(PUBLISHED)
    assert {name for name, recipe in RECIPES.items() if recipe.verb == "segment"} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name: str) -> None:
    config = RECIPES[name].config
    assert isinstance(config, SegmentRun)
    crop, drop_path, lr, layer_decay = PUBLISHED[name]
    assert (config.image_size, config.drop_path, config.train.lr, config.optim.layer_decay) == (crop, drop_path, lr, layer_decay)
    assert config.head == ("setr_pup" if name.endswith("setr") else "uper")
    assert (config.loss.average, config.loss.auxiliary_weight, config.normalization) == ("all", 0.4, "imagenet")
    assert (config.optim.weight_decay, config.optim.clip, config.optim.betas) == (0.05, None, (0.9, 0.999))
    schedule = make_schedule(config.train, config.loop, config.optim, 20_210, default_epochs=1)
    assert (schedule.images_per_step, schedule.steps, schedule.warmup) == (16, 160_000, 1_500)
    assert schedule.lr == pytest.approx(lr)
    assert schedule.lr_at(80_000) == pytest.approx(lr / 2)
    assert resolved(config.loop.accumulate) * resolved(config.train.batch_size) == 16
    assert from_json(SegmentRun, to_json(config)) == config


def test_a_recipe_is_for_its_verb_and_its_length_makes_way() -> None:
    with pytest.raises(UserError, match="is for beitkit segment, not for finetune"):
        recipe_named("segment-base-640-from-ft22k", "finetune")
    config = recipe_named("segment-base-640-from-ft22k", "segment").config_without(("epochs",))
    assert config.train.steps is None
