"""Pictures to look at: a few test images, what is in them and what the network says.

Truth and prediction stand in the same colours everywhere: blue and orange, which most colour-blind
readers can tell apart; a true object that was missed has a broad frame in dark red, and its name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou

from compress.data.pictures import enlarge, row_of
from eval.data.annotations import AnnotatedImage
from eval.data.masks import RunLengths, decode_masks

TRUTH = (86, 180, 233)
PREDICTION = (230, 159, 0)
MISSED = (190, 30, 45)
_LETTERS = 14  # pixels
_OVERLAP = 0.5  # IoU with a detection of its class from which an object counts as found


def draw_detections(
    path: Path,
    images: Sequence[AnnotatedImage],
    detections: Sequence[dict[str, Any]],
    class_names: tuple[str, ...],
    *,
    least_score: float = 0.5,
) -> None:
    """One row of images: true boxes blue, missed ones red, detections of `least_score` or more
    orange, with their class and score.

    detections[i] is as `eval.detection.inference.detect` gives it; masks are tinted.
    """
    panels = []
    for image, detected in zip(images, detections, strict=True):
        sure = detected["scores"] >= least_score
        masks = detected.get("segments", [])[: int(sure.sum())]  # the surest stand first
        panel, scale = enlarge(_tinted(image.pixels(), masks))
        pen = ImageDraw.Draw(panel)
        found = _found(image, detected["boxes"][sure], detected["labels"][sure])
        for box, label, is_found in zip(
            image.boxes.tolist(), image.labels.tolist(), found.tolist(), strict=True
        ):
            corners = _corners(box, scale)
            pen.rectangle(corners, outline=TRUTH if is_found else MISSED, width=3)
            if not is_found:
                _write(pen, corners[0], corners[3], f"missed: {class_names[label - 1]}", MISSED)
        for box, label, score in zip(
            detected["boxes"][sure].tolist(),
            detected["labels"][sure].tolist(),
            detected["scores"][sure].tolist(),
            strict=True,
        ):
            corners = _corners(box, scale)
            pen.rectangle(corners, outline=PREDICTION, width=2)
            _write(pen, corners[0], corners[1], f"{class_names[label - 1]} {score:.2f}", PREDICTION)
        panels.append(panel)
    row_of(panels).save(path)


def _found(image: AnnotatedImage, boxes: Tensor, labels: Tensor) -> Tensor:
    """(n,) bool, whether a detection of its class overlaps a true box enough; ignored ones are."""
    if not len(boxes) or not len(image.boxes):
        return image.ignored.bool().clone()
    overlaps = box_iou(image.boxes.float(), boxes.float()) >= _OVERLAP
    same = image.labels[:, None] == labels[None, :]
    found: Tensor = (overlaps & same).any(1) | image.ignored.bool()
    return found


def _write(
    pen: ImageDraw.ImageDraw, left: float, top: float, text: str, colour: tuple[int, int, int]
) -> None:
    """Black or white letters on a field of the colour, inside the picture."""
    font = ImageFont.load_default(_LETTERS)
    _, _, width, height = pen.textbbox((0, 0), text, font=font)
    picture = pen.im.size
    left = max(0, min(left, picture[0] - width - 4))
    top = max(0, min(top, picture[1] - height - 3))
    pen.rectangle((left, top, left + width + 4, top + height + 3), fill=colour)
    pen.text((left + 2, top + 1), text, fill="white" if colour == MISSED else "black", font=font)


def _tinted(pixels: Tensor, masks: Sequence[RunLengths]) -> Tensor:
    """(3, H, W) uint8 with the predicted masks in half the prediction's colour."""
    if not masks:
        return pixels
    inside = decode_masks(masks, (pixels.shape[1], pixels.shape[2])).amax(0).bool()
    mixed = 0.5 * pixels + 0.5 * torch.tensor(PREDICTION)[:, None, None]
    return torch.where(inside, mixed.round().to(torch.uint8), pixels)


def _corners(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (scale * side for side in box)
    return x0, y0, x1, y1
