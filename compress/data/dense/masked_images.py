"""Images with masks of class indices, checked when they are opened; `readers` finds them.

A mask is a PNG (palette or grey); what each of its 256 values means is up to the data set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.data.image_files import open_image, read_rgb, upright_size
from compress.errors import UserError

IGNORE_INDEX = 255
_UNKNOWN = -1


@dataclass(frozen=True)
class MaskedImage:
    """One image and its mask: files of the same height and width.

    The image counts as turned upright, as its EXIF orientation says; a mask is never turned.

    `meaning` gives the class of each of the 256 values of a mask, IGNORE_INDEX where it is ignored
    and -1 where there is no such class.
    """

    image: Path
    mask: Path
    meaning: tuple[int, ...] = field(repr=False)

    def pixels(self) -> Tensor:
        """(3, H, W) uint8 RGB."""
        return read_rgb(self.image, upright=True)

    def classes(self) -> Tensor:
        """(H, W) int64 class indices, 255 where void.

        Raises:
            UserError: the mask cannot be read, or has a value that stands for no class.
        """
        with open_image(self.mask) as mask:
            if mask.mode not in ("P", "L"):
                raise UserError(f"{self.mask} is no mask of class indices (mode {mask.mode}).")
            values = torch.from_numpy(np.array(mask)).long()
        classes = torch.tensor(self.meaning)[values]
        if (unknown := values[classes == _UNKNOWN]).numel():
            known = [value for value, label in enumerate(self.meaning) if label != _UNKNOWN]
            raise UserError(
                f"{self.mask} has the value {int(unknown[0])}, which is no class; there are values "
                f"{_ranges(known)}."
            )
        return classes

    def size(self) -> tuple[int, int]:
        """Height and width, as the header of the mask tells."""
        with open_image(self.mask) as mask:
            return mask.height, mask.width

    def identity(self, *, exact: bool) -> str:
        """Names and sizes of both files; `exact` where they are and when they were written."""
        files = (self.image, self.mask)
        if exact:
            stats = [(path.resolve(), path.stat()) for path in files]
            return " ".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
        return " ".join(f"{p.parent.name}/{p.name} {p.stat().st_size}" for p in files)


@dataclass(frozen=True)
class SegmentationData:
    """Training and test images; with `background`, class 0 is what belongs to no object."""

    class_names: tuple[str, ...]
    train: tuple[MaskedImage, ...]
    test: tuple[MaskedImage, ...]
    background: bool = False


def meaning(
    classes: Mapping[int, int], ignored: Iterable[int] = (IGNORE_INDEX,)
) -> tuple[int, ...]:
    """The `MaskedImage.meaning` of masks with the given value -> class, and of void values."""
    without_class = {*ignored}
    return tuple(
        IGNORE_INDEX if v in without_class else classes.get(v, _UNKNOWN) for v in range(256)
    )


def check_masks(items: Iterable[MaskedImage], source: Path) -> tuple[MaskedImage, ...]:
    """The images of a split that `source` lists or holds, once all their masks have been read.

    Raises:
        UserError: a mask has another size than its image or a value that is no class, or all
            masks are void, so that there is nothing to learn or to measure.
    """
    images = tuple(items)
    labelled = [_has_class(item) for item in images]
    if not any(labelled):
        raise UserError(f"{source}: every pixel of its {len(images)} masks is void.")
    return images


def _has_class(item: MaskedImage) -> bool:
    """Check a mask's values and size; return True if any pixel of it has a class."""
    classes = item.classes()
    if classes.shape != upright_size(item.image):
        height, width = item.pixels().shape[1:]  # the header may not tell all
        if classes.shape != (height, width):
            raise UserError(
                f"{item.mask} has {classes.shape[1]} x {classes.shape[0]} pixels, its image "
                f"{item.image.name} has {width} x {height}."
            )
    return bool((classes != IGNORE_INDEX).any())


def _ranges(values: list[int]) -> str:
    """Ascending numbers as text: 0 to 10, 255."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
