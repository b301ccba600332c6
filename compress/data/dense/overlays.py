"""Pictures of segmentation: images under their true masks and under the predicted ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from compress.data.dense.masked_images import IGNORE_INDEX
from compress.data.pictures import GAP, enlarge, row_of

_SIDE = 320
_LINE = 18
_LETTERS = 14
BACKGROUND = "background"
_SHARE = 0.6  # of the mask's colour


def draw_overlays(
    path: Path,
    images: Sequence[Tensor],
    truths: Sequence[Tensor],
    predictions: Sequence[Tensor],
    class_names: tuple[str, ...],
    *,
    background: bool,
) -> None:
    """Rows of the images, their true and their predicted masks, and the classes' colours below.

    images[i] is (3, H, W) uint8, truths[i] and predictions[i] are (H, W) class indices. Void
    pixels stay uncoloured, as does class 0 where it is the background.
    """
    rows = [("true classes", truths), ("predicted classes", predictions)]
    sheet = draw_masks(images, rows, class_names, background=background)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def draw_masks(
    images: Sequence[Tensor],
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    class_names: tuple[str, ...],
    *,
    background: bool,
) -> Image.Image:
    """The images, then a row of them under the masks of each name, and the classes' colours.

    images[i] is (3, H, W) uint8, masks are (H, W) class indices, coloured as by `draw_overlays`.
    """
    bare = [torch.full(image.shape[1:], IGNORE_INDEX) for image in images]
    return _sheet(images, [("image", bare), *rows], class_names, background=background)


def _sheet(
    images: Sequence[Tensor],
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    class_names: tuple[str, ...],
    *,
    background: bool,
) -> Image.Image:
    colours = palette(len(class_names))
    strips = []
    for name, masks in rows:
        pairs = zip(images, masks, strict=True)
        strip = row_of([_overlay(p, m, colours, background) for p, m in pairs])
        strips += [_title(name, strip.width), strip]
    legend = _legend(class_names, colours, strips[-1].width, background)
    parts = [*strips, legend]
    height = sum(part.height + GAP for part in parts) - GAP
    sheet = Image.new("RGB", (parts[0].width, height), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + GAP
    return sheet


def _title(name: str, width: int) -> Image.Image:
    strip = Image.new("RGB", (width, _LINE), "white")
    ImageDraw.Draw(strip).text((0, 0), name, fill="black", font=ImageFont.load_default(_LETTERS))
    return strip


def palette(count: int) -> Tensor:
    """(count, 3) uint8: hues spread by the golden ratio, dark and light in turn."""
    index = np.arange(count)
    hues = (index * 0.61803) % 1 * 255
    values = np.array([255, 200, 140])[index % 3]
    strip = np.stack([hues, np.full(count, 210), values], 1)[None].astype(np.uint8)
    return torch.from_numpy(np.array(Image.fromarray(strip, "HSV").convert("RGB"))[0])


def _overlay(pixels: Tensor, mask: Tensor, colours: Tensor, background: bool) -> Image.Image:
    """One panel: the image with its classes' colours over it, its longer side at _SIDE pixels."""
    bare = mask == IGNORE_INDEX
    if background:
        bare = bare | (mask == 0)
    overlay = colours[mask.clamp(max=len(colours) - 1)].permute(2, 0, 1)
    mixed = torch.where(bare, pixels.float(), (1 - _SHARE) * pixels + _SHARE * overlay)
    return enlarge(mixed.round().to(torch.uint8), _SIDE)[0]


def _legend(
    class_names: tuple[str, ...], colours: Tensor, width: int, background: bool
) -> Image.Image:
    """A square of each coloured class beside its name, as many lines as they take."""
    places: list[tuple[int, int, int]] = []
    left = line = 0
    measure, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(_LETTERS)
    for label in range(1 if background else 0, len(class_names)):
        length = _LINE + round(measure.textlength(class_names[label], font=font)) + 2 * GAP
        if left and left + length > width:
            left, line = 0, line + 1
        places.append((label, left, line * _LINE))
        left += length
    strip = Image.new("RGB", (width, (line + 1) * _LINE), "white")
    pen = ImageDraw.Draw(strip)
    for label, x, y in places:
        red, green, blue = colours[label].tolist()
        pen.rectangle((x, y + 2, x + 11, y + 13), fill=(red, green, blue))
        pen.text((x + _LINE, y), class_names[label], fill="black", font=font)
    return strip
