"""Words that people bring from other tools (ultralytics, timm, lightly-train, transformers), and what they are called here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "accum_iter": ("loop.accumulate",),
    "accum_steps": ("loop.accumulate",),
    "accumulate": ("loop.accumulate",),
    "amp": ("precision",),
    "arch": ("size",),
    "augmentation": ("augment.operations",),
    "auto_augment": ("augment.operations",),
    "backbone": ("model", "init", "size"),
    "batch": ("batch_size",),
    "bf16": ("precision",),
    "bs": ("batch_size",),
    "cache": ("read.cache",),
    "checkpoint": ("model", "init", "path"),
    "ckpt": ("model", "init", "path"),
    "clip_grad": ("optim.clip",),
    "color_jitter": ("view.color_jitter",),
    "compile": ("speed.compile",),
    "crop_pct": ("crop_share",),
    "cutmix": ("augment.cutmix",),
    "data": ("images",),
    "data_dir": ("images",),
    "data_path": ("images",),
    "dataset": ("images",),
    "decay": ("optim.weight_decay",),
    "drop_path": ("network.drop_path",),
    "drop_path_rate": ("drop_path", "network.drop_path"),
    "dtype": ("precision",),
    "early_stopping": ("patience",),
    "early_stopping_patience": ("patience",),
    "ema": ("loop.ema",),
    "eval_every": ("loop.evaluate_every",),
    "flip": ("view.flip",),
    "fp16": ("precision",),
    "frozen": ("freeze",),
    "gpus": ("devices", "device"),
    "grad_accum": ("loop.accumulate",),
    "grad_checkpointing": ("speed.recompute",),
    "gradient_accumulation_steps": ("loop.accumulate",),
    "gradient_checkpointing": ("speed.recompute",),
    "half": ("precision",),
    "hflip": ("view.flip",),
    "img_size": ("image_size",),
    "imgsz": ("image_size",),
    "initial_checkpoint": ("model", "init"),
    "input": ("images",),
    "input_size": ("image_size",),
    "iterations": ("steps",),
    "label_smoothing_factor": ("label_smoothing",),
    "layer_decay": ("optim.layer_decay",),
    "learning_rate": ("lr",),
    "log_interval": ("loop.log_every",),
    "logger": ("log",),
    "lr0": ("lr",),
    "mask_ratio": ("mask.ratio",),
    "max_epochs": ("epochs",),
    "max_steps": ("steps",),
    "mixed_precision": ("precision",),
    "mixup": ("augment.mixup",),
    "model": ("init", "size", "tokenizer"),
    "model_ema": ("loop.ema",),
    "name": ("out",),
    "num_epochs": ("epochs",),
    "num_steps": ("steps",),
    "num_train_epochs": ("epochs",),
    "num_workers": ("workers",),
    "output": ("out",),
    "output_dir": ("out",),
    "patch_size": ("patch",),
    "per_device_train_batch_size": ("batch_size",),
    "pretrained": ("model", "init"),
    "project": ("out",),
    "random_seed": ("seed",),
    "recompute": ("speed.recompute",),
    "report_to": ("log",),
    "reprob": ("augment.erasing",),
    "resolution": ("image_size",),
    "save_dir": ("out",),
    "save_freq": ("loop.save_every",),
    "save_interval": ("loop.save_every",),
    "save_steps": ("loop.save_every",),
    "sched": ("optim.schedule",),
    "scheduler": ("optim.schedule",),
    "smoothing": ("label_smoothing",),
    "source": ("images", "inputs"),
    "tokenizer_path": ("tokenizer",),
    "train_dir": ("images",),
    "update_freq": ("loop.accumulate",),
    "val_dir": ("val",),
    "val_split": ("val",),
    "vocab_size": ("dvae.vocabulary",),
    "vocabulary": ("dvae.vocabulary",),
    "wandb": ("log",),
    "warmup_epochs": ("optim.warmup_epochs",),
    "warmup_steps": ("optim.warmup_steps",),
    "wd": ("optim.weight_decay",),
    "weight_decay": ("optim.weight_decay",),
    "weights": ("model", "init", "path"),
}
"""What is typed elsewhere, without dashes, and the fields that mean it here; a verb has one of them, or none."""

NOT_NEEDED: dict[str, str] = {
    "devices": "several processes are started by the command line alone, with --devices, or by torchrun",
    "resume": "the same command again continues a run",
    "exist_ok": "the same command again continues a run",
    "num_classes": "the classes are those of the labeled images",
    "nb_classes": "the classes are those of the labeled images",
    "overwrite": "give another `out`, or delete the run folder",
    "verbose": "a run says what it does on stderr, and more in its journal.jsonl",
}
"""What other tools ask for, and why it is not asked here."""


def meant(given: str, fields: Iterable[str]) -> str | None:
    """What someone who gave an option that a verb does not have will have meant: the end of a sentence, or None.

    Args:
        given: as typed or as passed in Python: --learning-rate, learning_rate.
        fields: what the verb has, as messages name it.
    """
    word, known = given.lstrip("-").replace("-", "_").lower(), [*fields]
    for field in OTHER_NAMES.get(word, ()):
        if field in known:
            return f"it is `{field}` here"
    if word in NOT_NEEDED:
        return NOT_NEEDED[word]
    last_parts = [field for field in known if field.rpartition(".")[2] == word.rpartition(".")[2]]
    if len(last_parts) == 1:
        return f"did you mean `{last_parts[0]}`?"
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{close[0]}`?" if close else None
