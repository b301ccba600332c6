"""Training views of segmentation: scaled, cropped, mirrored, by (seed, epoch, index) alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compress.data import Preprocessing
from compress.data.dense.masked_images import IGNORE_INDEX, MaskedImage
from compress.errors import UserError
from compress.seeding import generator
from eval.data.batches import KeyedBatches

_STEP = 0.1
Example = tuple[Tensor, Tensor]


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
            pixels, mask = random_crop(pixels, mask, views, preprocessing.mean, draw)
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
    return resize(pixels, size), _resize_mask(mask, size)


def random_crop(
    pixels: Tensor,
    mask: Tensor,
    views: Views,
    mean: tuple[float, float, float],
    draw: torch.Generator,
) -> Example:
    """A view (3, crop, crop) and its mask (crop, crop) by the numbers of `draw`."""
    crop = views.crop or 0
    if views.scales is not None:
        low, high = views.scales
        steps = round((high - low) / _STEP)
        factor = low + _STEP * int(torch.randint(steps + 1, (1,), generator=draw))
        size = (max(1, round(factor * mask.shape[0])), max(1, round(factor * mask.shape[1])))
        pixels, mask = resize(pixels, size), _resize_mask(mask, size)
    below, right = max(0, crop - mask.shape[0]), max(0, crop - mask.shape[1])
    if below or right:
        colour = (255 * torch.tensor(mean)).round().to(torch.uint8)
        whole = colour[:, None, None].repeat(1, mask.shape[0] + below, mask.shape[1] + right)
        whole[:, : mask.shape[0], : mask.shape[1]] = pixels
        pixels, mask = whole, functional.pad(mask, (0, right, 0, below), value=IGNORE_INDEX)
    top = int(torch.randint(mask.shape[0] - crop + 1, (1,), generator=draw))
    left = int(torch.randint(mask.shape[1] - crop + 1, (1,), generator=draw))
    place = (..., slice(top, top + crop), slice(left, left + crop))
    return pixels[place], mask[place]


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, *size) uint8."""
    resized = functional.interpolate(
        pixels[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) int64 -> (*size) int64: the class at the centre of each new pixel."""
    resized = functional.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")
    return resized[0, 0].long()
