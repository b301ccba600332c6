"""Pictures to look at: a few test images, what is in them and what the network says.

Truth and prediction stand in the same colours everywhere: blue and orange, which most colour-blind
readers can tell apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageDraw
from torch import Tensor

from compress.data.pictures import enlarge, row_of
from eval.data.annotations import AnnotatedImage
from eval.data.masks import RunLengths, decode_masks

TRUTH = (86, 180, 233)
PREDICTION = (230, 159, 0)


def draw_detections(
    path: Path,
    images: Sequence[AnnotatedImage],
    detections: Sequence[dict[str, Any]],
    class_names: tuple[str, ...],
    *,
    least_score: float = 0.5,
) -> None:
    """One row of images: true boxes blue, detections of `least_score` or more orange.

    detections[i] is as `eval.detection.inference.detect` gives it; masks are tinted.
    """
    panels = []
    for image, detected in zip(images, detections, strict=True):
        sure = detected["scores"] >= least_score
        masks = detected.get("segments", [])[: int(sure.sum())]  # the surest stand first
        panel, scale = enlarge(_tinted(image.pixels(), masks))
        pen = ImageDraw.Draw(panel)
        for box in image.boxes.tolist():
            pen.rectangle(_corners(box, scale), outline=TRUTH, width=3)
        for box, label, score in zip(
            detected["boxes"][sure].tolist(),
            detected["labels"][sure].tolist(),
            detected["scores"][sure].tolist(),
            strict=True,
        ):
            corners = _corners(box, scale)
            pen.rectangle(corners, outline=PREDICTION, width=2)
            pen.text(
                (corners[0] + 4, corners[1] + 3),
                f"{class_names[label - 1]} {score:.2f}",
                fill=PREDICTION,
            )
        panels.append(panel)
    row_of(panels).save(path)


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
