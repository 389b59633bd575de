"""Parts of a run that a caller of the Python functions gives as objects: images, a tokenizer, an augmentation.

The run's config holds a description in their place, which begins with `files.GIVEN`; the objects are handed down beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitkit.contracts import Augmentation, PatchTokenizer
from beitkit.data.own.augmentation import PROBES, OwnAugmentation
from beitkit.data.own.encode import described
from beitkit.data.own.images import PROBED, OwnImages, listed
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError, refuse_given
from beitkit.tokenizers.own import OwnTokenizer


@dataclass(frozen=True, kw_only=True)
class OwnParts:
    """The objects of a run, by the field that describes them; None where a path was given."""

    images: object | None = None
    val: object | None = None
    inputs: object | None = None
    """In place of the paths that `predict` and `embed` take."""
    tokenizer: PatchTokenizer | None = None
    augmentation: Augmentation | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> OwnParts:
        """The parts by field.

        Raises:
            UserError: a tokenizer or an augmentation that cannot be called.
        """
        for field in ("tokenizer", "augmentation"):
            if field in given and not callable(given[field]):
                raise UserError(f"`{field}` is a {type(given[field]).__name__}; expected a path or something that can be called")
        return cls(**given)

    def descriptions(self) -> dict[str, str | Path]:
        """What the config holds in the place of each, by field."""
        found: dict[str, str | Path] = {}
        for field in ("images", "val", "inputs"):
            given: Any = getattr(self, field)
            if given is not None:
                found[field] = Path(listed(given))
        if self.tokenizer is not None:
            found["tokenizer"] = Path(described(self.tokenizer))
        if self.augmentation is not None:
            found["augmentation"] = described(self.augmentation)
        return found

    def images_or(self, path: Path, steps_images: int | None = None) -> Path | OwnImages:
        """The images that were given, or else the path; `steps_images` as in `OwnImages.of`."""
        return path if self.images is None else OwnImages.of(self.images, steps_images)

    def val_or(self, path: Path | None) -> Path | OwnImages | None:
        """The same of validation images."""
        return path if self.val is None else OwnImages.of(self.val)

    def augmentation_of(self, description: str | None, channels: int, *, is_deep: bool) -> OwnAugmentation | None:
        """The augmentation for such images.

        Raises:
            UserError: the config says that there is one, and none was given.
        """
        if self.augmentation is None:
            refuse_given(description)
            if description is not None:
                raise UserError(f"`augmentation` is from Python only, something that can be called; got {description!r}")
            return None
        return OwnAugmentation(self.augmentation, channels, is_deep)


NONE = OwnParts()


def checked_by(
    files: Mapping[str, ImageList], tokenizer: object = None, augmentation: OwnAugmentation | None = None
) -> list[tuple[str, str]]:
    """For the header of a report: what is compared of each own part when the run is continued, and what is not.

    `files` are lists by what they are called.
    """
    found = []
    for name, images in files.items():
        if (items := images.items) is None:
            continue
        if not items.is_repeatable:
            told = "items differ each time they are read, so only class and length are compared, and a continued run is not exact"
        elif items.is_stream:
            told = f"the first {PROBED} items are compared; a continued run reads again what was shown, and needs the same order"
        else:
            told = f"class, length and {min(PROBED, len(items))} items are compared; nobody can tell whether others are the same"
        found.append((f"Own {name}", f"{items.description}: {told}"))
    if isinstance(tokenizer, OwnTokenizer):
        told = "its ids of fixed images of noise are compared; nobody can tell whether those of others are the same"
        if not tokenizer.is_repeatable:
            told = "it gives the same images other ids each time, so only its name is compared, and a continued run is not exact"
        elif isinstance(getattr(tokenizer.function, "fingerprint", None), str):
            told = "its own `fingerprint` is compared"
        found.append(("Own tokenizer", f"{tokenizer.description}: {told}"))
    if augmentation is not None:
        told = f"what it makes of {PROBES} fixed images of noise is compared; nobody can tell whether that of others is the same"
        if not augmentation.fingerprint[1]:
            told = (
                "it draws from something else than the global generators of Python, NumPy and PyTorch, so only its name is "
                "compared, and a continued run is not exact"
            )
        elif isinstance(getattr(augmentation.change, "fingerprint", None), str):
            told = "its own `fingerprint` is compared"
        found.append(("Own augmentation", f"{augmentation.description}: {told}"))
    return found
