"""Options of `beitkit verdict`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from beitkit.configs.bounds import Bounds, PositiveFloat, PositiveInt, ShareBelowOne, config
from beitkit.configs.codec import later
from beitkit.configs.data import CHOSEN_VIEW, AugmentConfig, ColumnsConfig, ReadConfig, ViewConfig
from beitkit.configs.model import ImageSizeOrNone, Pooling, SegmentationHead, SizeName
from beitkit.configs.parts import Flat, From, Json, NetworkConfig
from beitkit.configs.segmentation import InferenceConfig, SegmentationLossConfig
from beitkit.configs.train import Freeze, LightConfig, LoopConfig, MachineConfig, SpeedConfig, check_light
from beitkit.errors import UserError

SCRATCH = Path("scratch")
"""Among the starts: fresh weights."""
DIVIDED_BY_TASK = {
    "segment": ("labels", "pooling", "augment", "view", "label_smoothing"),
    "classify": ("head", "classes", "all_values", "loss"),
}
"""Options without a meaning for this task."""


@config(kw_only=False)
class VerdictRun:
    """Which start is best on your images: the same fine-tuning from each, over seeds, and what simple methods reach.

    What is None is chosen from the images, the network and the device, for each start by the rules of fine-tuning. Images with
    masks are segmented, others classified.
    """

    images: Positional[Path]
    """Labeled images: train/<class>/ and val/<class>/, or <class>/ alone, or a .csv or .jsonl list; or images/ and masks/."""
    _: KW_ONLY
    starts: Annotated[tuple[Path, ...], From, Bounds(is_distinct=True)]
    """Run folders or checkpoints to start from; the word scratch for fresh weights, in the network of the first of the others."""
    labels: Annotated[tuple[int, ...], Bounds(ge=1, is_distinct=True)] | None = None
    """Numbers of labeled images to train on, as evenly over the classes as can be, drawn by the seed; None takes all once."""
    seeds: Annotated[tuple[int, ...], Bounds(ge=0, is_distinct=True)] = (0, 1, 2)
    """One training for each; they draw `labels`, the head and the order."""
    out: Path = Path("runs/verdict")
    """Folder for the runs, verdict.json and report.html; made or continued."""
    task: Literal["auto", "classify", "segment"] = "auto"
    """auto segments where there are images and masks."""
    size: SizeName | None = None
    """Size of the network of scratch, where it is not that of another start."""
    patch: PositiveInt | None = None
    """Side of its patches in pixels; None takes 16."""
    pooling: Pooling | None = None
    """What the head of a classifier sees, for every start: mean or grid, as in fine-tuning. None is chosen."""
    image_size: ImageSizeOrNone = None
    """Of the images in pixels (of the crops, for segmentation): the side of squares, or height and width."""
    val: Path | None = None
    """Images to compare on, when they are not in a val/ part; without either, a fifth is set aside by the first seed."""
    epochs: PositiveFloat | None = None
    """Passes over the images of every training."""
    steps: PositiveInt | None = None
    """Optimizer steps of every training, instead of `epochs`."""
    batch_size: PositiveInt | None = None
    """Images per step."""
    lr: PositiveFloat | None = None
    """Peak learning rate of the starts that have weights (as in fine-tuning: for 1024 images, or 16 scenes)."""
    scratch_lr: PositiveFloat | None = None
    """The same from scratch."""
    layer_decay: Annotated[float, Bounds(gt=0, le=1)] | None = None
    """Factor on the learning rate per block below the top; from scratch there is none."""
    drop_path: ShareBelowOne | None = None
    """Stochastic depth of the last block."""
    freeze: Freeze = False
    """Parts of the starts with weights that stay as they are (as in fine-tuning). Without a value: everything but the head."""
    label_smoothing: ShareBelowOne = 0.1
    """Share of the target spread evenly over all classes."""
    floors: bool = True
    """Measure the simple methods as well."""
    probe: bool = True
    """Measure a linear probe of each frozen start as well."""
    head: SegmentationHead = "uper"
    """Segmentation: the decoder."""
    classes: Path | None = None
    """Segmentation: a classes.json, when it does not lie beside the images."""
    all_values: bool = False
    """Segmentation without a classes.json: take every value in the masks for a class."""
    json: Json = False
    light: Annotated[LightConfig, Flat] = LightConfig()
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    view: ViewConfig = CHOSEN_VIEW
    loss: SegmentationLossConfig = SegmentationLossConfig()
    inference: InferenceConfig = later(InferenceConfig())
    loop: LoopConfig = LoopConfig()
    speed: SpeedConfig = SpeedConfig()
    read: ReadConfig = ReadConfig()
    columns: ColumnsConfig = ColumnsConfig()

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"give `epochs` or `steps`, not both (got {self.epochs:g} epochs and {self.steps} steps)")
        check_light(self.light, self.freeze)
        described = {"size": self.size, "patch": self.patch, "network": self.network if self.network != NetworkConfig() else None}
        given = [name for name, value in described.items() if value is not None]
        if given and SCRATCH not in self.starts:
            raise UserError(f"`{given[0]}` describes the network of scratch, which `starts` does not name")
        if given and self.size is None:
            raise UserError(f"`{given[0]}` describes the network of scratch; give its `size` as well")
        if self.size is None and not self.trained_starts:
            raise UserError("`starts` names scratch alone; give `size` (such as base) as well, or another start")

    @property
    def trained_starts(self) -> tuple[Path, ...]:
        """Those that have weights."""
        return tuple(path for path in self.starts if path != SCRATCH)

    def check_task(self, task: Literal["classify", "segment"]) -> None:
        """Raise a `UserError` for an option that has no meaning for the task."""
        what = {"classify": "class folders and lists of labels", "segment": "images with masks"}[task]
        for name in DIVIDED_BY_TASK[task]:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:  # type: ignore[attr-defined]
                raise UserError(f"`{name}` has no meaning for {what}; leave it out, or give another `task`")
        if task == "segment":
            self.inference.refuse_shift()
        else:
            self.inference.refuse_windows()
