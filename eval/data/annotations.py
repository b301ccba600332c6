"""Annotated images in one form, whatever format they come from, checked when they are opened.

Boxes are x0 y0 x1 y1 in pixels, half-open, origin at the upper left corner. Labels count from 1;
0 is the detector's background. A damaged or contradictory annotation is a UserError naming its
file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress.data.image_files import read_rgb, upright_size
from compress.errors import UserError
from compress.storage.user_files import require_file
from eval.data.masks import Segment, decode_masks, encode_segment

# Annotation tools disagree whether pixels count from 0 or 1; a box may stick out by this much.
_OUTSIDE_TOLERANCE = 1.0
# Pixels: the sides of a smaller box may fall together where float32 scales or mirrors it.
_SMALLEST_SIDE = 1e-3
_LARGEST_SIDE = 1 << 24  # the last up to which float32 holds every integer
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
            return decode_masks([encode_segment(segment, size) for segment in self.segments], size)
        except (ValueError, RuntimeError, OverflowError) as error:
            raise UserError(f"{self.path}: {error}.") from None

    def pixels(self) -> Tensor:
        """(3, H, W) uint8 RGB, turned upright as EXIF says; the annotation is of that."""
        pixels = read_rgb(self.path, upright=True)
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
    """Check that a split has an object to train on, or to detect.

    Args:
        split: what the images are and where they are listed, for the message.
        ignored: whether objects that evaluation ignores count too.

    Raises:
        UserError: the split has no object.
    """
    if not any(len(i.boxes) if ignored else not i.ignored.all() for i in images):
        raise UserError(f"The {split} has no object in any of its {len(images)} images.")


def is_empty_after_cut(box: Box, size: tuple[int, int]) -> bool:
    """Return True if nothing is left of a box, otherwise sound, once it is cut to its image.

    Args:
        size: height and width of its image.
    """
    if not _is_sound(box, size):
        return False
    x0, y0, x1, y1 = box
    height, width = size
    sides = min(x1, width) - max(x0, 0), min(y1, height) - max(y0, 0)
    return min(sides) < _SMALLEST_SIDE


def _is_sound(box: Box, size: tuple[int, int]) -> bool:
    """Corners in their order, none too far outside; NaN is neither."""
    x0, y0, x1, y1 = box
    least, most = -_OUTSIDE_TOLERANCE, _OUTSIDE_TOLERANCE
    return least <= x0 <= x1 <= size[1] + most and least <= y0 <= y1 <= size[0] + most


def check_annotation(
    source: Path,
    image: Path,
    size: tuple[int, int],
    boxes: list[Box],
    labels: list[int],
    ignored: list[bool],
    segments: tuple[Segment, ...] | None = None,
) -> AnnotatedImage:
    """Check one image's annotation and header; boxes within the tolerance are cut to the image."""
    height, width = size
    require_file(image, source)
    if max(size) > _LARGEST_SIDE:
        raise UserError(f"{source} says that {image.name} has {width} x {height} pixels.")
    for box in boxes:
        if not _is_sound(box, size) or is_empty_after_cut(box, size):
            raise UserError(
                f"{source} has the box {box} (x0, y0, x1, y1), which is empty or outside its "
                f"image of {width} x {height} pixels ({image.name})."
            )
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    tensor = tensor.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    classes, left_out = torch.tensor(labels, dtype=torch.int64), torch.tensor(ignored).bool()
    annotated = AnnotatedImage(image, height, width, tensor, classes, left_out, segments)
    if upright_size(image) != size:
        annotated.pixels()  # refused in there, unless the header did not tell all
    return annotated
