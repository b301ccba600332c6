"""Annotated images in one form, whatever layout they come from, checked when they are opened.

Boxes are x0 y0 x1 y1 in pixels, half-open, origin at the upper left corner. Labels count from 1;
0 is the detector's background. A damaged or contradictory annotation is a UserError naming its
file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from compress.errors import UserError
from eval.detection.masks import Segment, decoded, encoded

# Annotation tools disagree whether pixels count from 0 or 1; a box may stick out by this much.
_OUTSIDE_TOLERANCE = 1.0
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class AnnotatedImage:
    """One image: file, size, boxes (n, 4), labels (n,), and which boxes evaluation ignores (n,).

    segments: the outline of each object, None where the annotation gives boxes only.
    """

    path: Path
    height: int
    width: int
    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    segments: tuple[Segment, ...] | None = None

    def masks(self) -> Tensor:
        """(n, H, W) uint8, 1 inside each object; there must be outlines.

        Raises:
            UserError: an outline is damaged.
        """
        assert self.segments is not None
        size = (self.height, self.width)
        try:
            return decoded([encoded(segment, size) for segment in self.segments], size)
        except (ValueError, RuntimeError, OverflowError) as error:
            raise UserError(f"{self.path}: {error}.") from None

    def pixels(self) -> Tensor:
        """(3, H, W) uint8 RGB."""
        try:
            with Image.open(self.path) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{self.path} cannot be read as an image ({error}).") from None
        if pixels.shape[1:] != (self.height, self.width):
            raise UserError(
                f"{self.path} has {pixels.shape[2]} x {pixels.shape[1]} pixels, but its annotation "
                f"says {self.width} x {self.height}."
            )
        return pixels


@dataclass(frozen=True)
class DetectionData:
    """Training and test images. COCO crowds are not trained on, VOC's difficult objects are."""

    class_names: tuple[str, ...]
    train: tuple[AnnotatedImage, ...]
    test: tuple[AnnotatedImage, ...]
    trains_on_ignored: bool


def require_objects(images: Sequence[AnnotatedImage], split: str, *, ignored: bool) -> None:
    """Something must be there to train on, or to be found.

    Args:
        split: what the images are and where they are listed, for the message.
        ignored: whether objects that evaluation ignores count too.

    Raises:
        UserError: the split has no object.
    """
    if not any(len(i.boxes) if ignored else not i.ignored.all() for i in images):
        raise UserError(f"The {split} has no object in any of its {len(images)} images.")


def checked(
    source: Path,
    image: Path,
    size: tuple[int, int],
    boxes: list[Box],
    labels: list[int],
    ignored: list[bool],
    segments: tuple[Segment, ...] | None = None,
) -> AnnotatedImage:
    """Check one image's annotation; a box that sticks out within the tolerance is cut."""
    height, width = size
    if not image.is_file():
        raise UserError(f"{image} not found; {source} names it.")
    for box in boxes:
        x0, y0, x1, y1 = box
        inside = min(x0, y0) >= -_OUTSIDE_TOLERANCE
        inside &= x1 <= width + _OUTSIDE_TOLERANCE and y1 <= height + _OUTSIDE_TOLERANCE
        if not (all(map(math.isfinite, box)) and inside and x0 < x1 and y0 < y1):
            raise UserError(
                f"{source} has the box {box} (x0, y0, x1, y1), which is empty or outside its "
                f"image of {width} x {height} pixels ({image.name})."
            )
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    tensor = tensor.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    classes, left_out = torch.tensor(labels, dtype=torch.int64), torch.tensor(ignored).bool()
    return AnnotatedImage(image, height, width, tensor, classes, left_out, segments)
