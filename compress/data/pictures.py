"""Panels of images beside each other, to look at."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

SIDE = 256
GAP = 6  # pixels between panels


def enlarge(pixels: Tensor, side: int = SIDE) -> tuple[Image.Image, float]:
    """Scale an image (3, H, W) to a longer side of `side` pixels; returns it and the factor."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR), scale


def row_of(panels: Sequence[Image.Image]) -> Image.Image:
    """The panels beside each other."""
    width = sum(panel.width + GAP for panel in panels) - GAP
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + GAP
    return row
