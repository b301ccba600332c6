"""Scenes composed from small digit images, with boxes and masks that are known exactly.

One to three digits of 16 to 24 pixels on a textured background; a function of the draws alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

DIGIT_SIDES = (16, 24)
_PLACING_ATTEMPTS = 40
# A stroke pixel belongs to the object where the enlarged digit reaches this share of full ink.
_INK = 0.35


@dataclass(frozen=True)
class Scene:
    """One image: pixels (H, W, 3) uint8, mask (H, W) uint8 (0 background, else class + 1).

    Boxes are x0 y0 x1 y1 in pixels, half-open: x1 and y1 are the first column and row outside.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    boxes: tuple[tuple[int, int, int, int], ...]
    labels: tuple[int, ...]


def compose(pools: list[Tensor], image_size: int, draw: torch.Generator) -> Scene:
    """Draw one scene: 1 to 3 digits whose boxes do not overlap. pools[c] is (n, 8, 8) in 0..1."""
    canvas = background(image_size, draw)
    mask = torch.zeros(image_size, image_size, dtype=torch.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(integer(1, 3, draw)):
        label = integer(0, len(pools) - 1, draw)
        ink = enlarge_digit(
            pools[label][integer(0, len(pools[label]) - 1, draw)], integer(*DIGIT_SIDES, draw)
        )
        place = _free_place(boxes, ink.shape, image_size, draw)
        if place is None:
            continue
        y, x = place
        height, width = ink.shape
        paint(canvas[:, y : y + height, x : x + width], ink, draw)
        mask[y : y + height, x : x + width][ink >= _INK] = label + 1
        boxes.append((x, y, x + width, y + height))
        labels.append(label)
    return Scene(to_uint8(canvas), mask.numpy(), tuple(boxes), tuple(labels))


def integer(low: int, high: int, draw: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=draw))


def background(size: int, draw: torch.Generator) -> Tensor:
    """(3, size, size) in 0..1: a dim, smooth, coloured texture with noise in every pixel."""
    coarse = torch.rand(1, 3, 5, 5, generator=draw) * 0.4
    smooth = functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)[
        0
    ]
    return smooth + 0.04 * torch.randn(3, size, size, generator=draw)


def enlarge_digit(digit: Tensor, side: int) -> Tensor:
    """(8, 8) -> the enlarged digit, cut to the extents of its ink: its box is the mask's."""
    ink = functional.interpolate(
        digit[None, None], size=(side, side), mode="bilinear", align_corners=False
    )[0, 0]
    rows, columns = torch.nonzero(ink >= _INK, as_tuple=True)
    return ink[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]


def paint(area: Tensor, ink: Tensor, draw: torch.Generator) -> None:
    """Blend a bright colour into area (3, h, w), in place, as strongly as the ink (h, w) says."""
    colour = 0.7 + 0.3 * torch.rand(3, 1, 1, generator=draw)
    area.copy_(area * (1 - ink) + colour * ink)


def _free_place(
    boxes: list[tuple[int, int, int, int]],
    shape: torch.Size,
    image_size: int,
    draw: torch.Generator,
) -> tuple[int, int] | None:
    """A corner (y, x) where a digit of shape (h, w) covers no box; None if chance finds none."""
    height, width = shape
    for _ in range(_PLACING_ATTEMPTS):
        y, x = integer(0, image_size - height, draw), integer(0, image_size - width, draw)
        if all(
            x >= x1 or x + width <= x0 or y >= y1 or y + height <= y0 for x0, y0, x1, y1 in boxes
        ):
            return y, x
    return None


def to_uint8(canvas: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) around 0..1 -> (H, W, 3) uint8."""
    pixels = canvas.clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
    return array
