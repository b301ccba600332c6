"""Training views of segmentation: scaled, cropped, mirrored, by (seed, epoch, index) alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compress.data import Preprocessing
from compress.data.dense.masked_images import MaskedImage
from compress.data.dense.views import Example, random_crop, resize, resize_mask
from compress.errors import UserError
from compress.seeding import generator
from eval.data.batches import KeyedBatches


def at_least(name: str, value: float | None, least: int) -> None:
    """Refuse an argument of the task that is too small, or no finite number; None passes."""
    if value is not None and not least <= value < math.inf:
        raise UserError(f"segmentation: {name} is at least {least}, got {value}.")


@dataclass(frozen=True)
class Views:
    """Scaling, cropping and mirroring that make a training view of an image.

    Attributes:
        image_size: side of the square to which images are scaled; None keeps them.
        scales: then by a factor from `scales[0]` to `scales[1]` in steps of 0.1.
        crop: then a square of that side is cut at random; what lies outside the image has the mean
            colour and no class (IGNORE_INDEX).
        flip: mirror half of them.
    """

    image_size: int | None = None
    crop: int | None = None
    scales: tuple[float, float] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        at_least("image_size", self.image_size, 1)
        at_least("crop", self.crop, 1)
        if self.scales is not None and not 0 < self.scales[0] <= self.scales[1] < math.inf:
            raise UserError(
                f"segmentation: scales are two positive, ascending factors; got {self.scales}."
            )
        if self.scales is not None and self.crop is None:
            raise UserError("segmentation: with scales, images differ in size; set crop.")


def view_batches(
    images: Sequence[MaskedImage],
    views: Views,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> KeyedBatches[Example, Example]:
    """Batches of views for THE loop: normalised images (N, 3, H, W) and masks (N, H, W)."""

    def read(index: int, mirrored: bool, epoch: int) -> Example:
        pixels, mask = example(images[index], views.image_size)
        if views.crop is not None:
            draw = generator(seed, "view", epoch, index)
            pixels, mask = random_crop(
                pixels,
                mask,
                crop=views.crop,
                scales=views.scales,
                mean=preprocessing.mean,
                draw=draw,
            )
        return (pixels.flip(2), mask.flip(1)) if mirrored else (pixels, mask)

    def collate(examples: list[Example]) -> Example:
        shapes = {tuple(mask.shape) for _, mask in examples}
        if len(shapes) > 1:
            raise UserError(f"segmentation: images of {len(shapes)} sizes; set image_size or crop.")
        pixels = torch.stack([pixels for pixels, _ in examples]).to(device)
        masks = torch.stack([mask for _, mask in examples]).to(device)
        return preprocessing.normalise(pixels), masks

    return KeyedBatches(len(images), batch_size, seed, views.flip, read, collate)


def example(item: MaskedImage, image_size: int | None) -> Example:
    """Pixels (3, H, W) uint8 and mask (H, W) int64, scaled to the square."""
    pixels, mask = item.pixels(), item.classes()
    if image_size is None:
        return pixels, mask
    size = (image_size, image_size)
    return resize(pixels, size), resize_mask(mask, size)
