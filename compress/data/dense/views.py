"""Views of an image and its mask: scaled and cut alike, by the numbers of a generator."""

import torch
from torch import Tensor
from torch.nn import functional

from compress.data.dense.masked_images import IGNORE_INDEX

_STEP = 0.1
Example = tuple[Tensor, Tensor]
Scales = tuple[float, float]


def random_crop(
    pixels: Tensor,
    mask: Tensor,
    *,
    crop: int,
    scales: Scales | None,
    mean: tuple[float, float, float],
    draw: torch.Generator,
) -> Example:
    """A view (3, crop, crop) and its mask (crop, crop) by the numbers of `draw`.

    Both are scaled by a factor from `scales[0]` to `scales[1]` in steps of 0.1, then cut; what
    lies outside the image has the mean colour and no class.
    """
    if scales is not None:
        low, high = scales
        steps = round((high - low) / _STEP)
        factor = low + _STEP * int(torch.randint(steps + 1, (1,), generator=draw))
        size = (max(1, round(factor * mask.shape[0])), max(1, round(factor * mask.shape[1])))
        pixels, mask = resize(pixels, size), resize_mask(mask, size)
    pixels, mask = pad_to(pixels, mask, crop, mean)
    top = int(torch.randint(mask.shape[0] - crop + 1, (1,), generator=draw))
    left = int(torch.randint(mask.shape[1] - crop + 1, (1,), generator=draw))
    return cut(pixels, mask, top, left, crop)


def central_crop(
    pixels: Tensor, mask: Tensor, *, crop: int, mean: tuple[float, float, float]
) -> Example:
    """The centre (3, crop, crop) of an image and its mask, filled up below and right."""
    pixels, mask = pad_to(pixels, mask, crop, mean)
    top, left = ((side - crop) // 2 for side in mask.shape)
    return cut(pixels, mask, top, left, crop)


def pad_to(pixels: Tensor, mask: Tensor, side: int, mean: tuple[float, float, float]) -> Example:
    """Image and mask with a height and width of `side` or more: the mean colour, no class."""
    below, right = max(0, side - mask.shape[0]), max(0, side - mask.shape[1])
    if not below and not right:
        return pixels, mask
    colour = (255 * torch.tensor(mean)).round().to(torch.uint8)
    whole = colour[:, None, None].repeat(1, mask.shape[0] + below, mask.shape[1] + right)
    whole[:, : mask.shape[0], : mask.shape[1]] = pixels
    return whole, functional.pad(mask, (0, right, 0, below), value=IGNORE_INDEX)


def cut(pixels: Tensor, mask: Tensor, top: int, left: int, side: int) -> Example:
    """A square of image and mask."""
    place = (..., slice(top, top + side), slice(left, left + side))
    return pixels[place], mask[place]


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, *size) uint8."""
    resized = functional.interpolate(
        pixels[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) int64 -> (*size) int64: the class at the centre of each new pixel."""
    resized = functional.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")
    return resized[0, 0].long()
