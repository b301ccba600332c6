"""Average precision of PASCAL VOC 2007: precision at 11 recalls, difficult objects left out.

A detection belongs to the object of its class that it overlaps most, taken or not; it is right
where the IoU is above the threshold and the object was not found before by a surer detection. Of a
difficult object it is neither right nor wrong. Boxes here are half-open, so that x1 - x0 is the
devkit's xmax - xmin + 1. Scores and corners are not rounded, as detectron2 does for its files.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from eval.data.annotations import AnnotatedImage

PROTOCOL = (
    "PASCAL VOC 2007 average precision (11 recalls, difficult objects ignored) on the test images "
    "after the last epoch; AP is the mean over IoU .50 to .95"
)
_THRESHOLDS = tuple((50 + 5 * step) / 100 for step in range(10))


def voc_average_precision(
    images: Sequence[AnnotatedImage], detections: Sequence[dict[str, Any]], class_count: int
) -> dict[str, float]:
    """AP, AP50 and AP75 in percent, averaged over the classes that occur in `images`.

    detections[i] has boxes (n, 4) x0 y0 x1 y1, labels (n,) from 1 and scores (n,) of images[i].
    """
    rows = []
    for label in range(1, class_count + 1):
        objects = sum(int(((i.labels == label) & ~i.ignored).sum()) for i in images)
        if objects:
            nearest = _nearest_objects(images, detections, label)
            rows.append([eleven_points(_right(*nearest, t), objects) for t in _THRESHOLDS])
    if not rows:
        return {"ap_percent": 0.0, "ap50_percent": 0.0, "ap75_percent": 0.0}
    means = 100 * torch.tensor(rows, dtype=torch.float64).mean(0)
    ap50, ap75 = float(means[0]), float(means[5])
    return {"ap_percent": float(means.mean()), "ap50_percent": ap50, "ap75_percent": ap75}


def eleven_points(is_right: Tensor, objects: int) -> float:
    """Mean over the recalls 0, .1, ... 1 of the best precision at that recall or a higher one.

    The recalls are detectron2's, step * 0.1 in float64: .3, .6 and .7 lie one rounding above these
    numbers, so that 3 found objects of 10 do not reach .3.

    is_right: (n,) bool, the detections of a class from the surest on; objects: how many there are.
    """
    hits = is_right.double().cumsum(0)
    recall = hits / objects
    precision = hits / torch.arange(1, len(hits) + 1, dtype=torch.float64)
    best = [
        float(precision[recall >= point].max()) if (recall >= point).any() else 0.0
        for point in (step * 0.1 for step in range(11))
    ]
    return sum(best) / 11


def _nearest_objects(
    images: Sequence[AnnotatedImage], detections: Sequence[dict[str, Any]], label: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a class's detections, the surest first: IoU with the object of the class that each
    overlaps most (n,), that object's number (n,), and whether it is difficult (n,)."""
    scores, overlaps, objects, difficult = [], [], [], []
    count = 0
    for image, detection in zip(images, detections, strict=True):
        chosen, mine = detection["labels"] == label, image.labels == label
        # An object that nothing overlaps, so that there is a nearest one in every image.
        boxes = torch.cat([image.boxes[mine].double(), torch.zeros(1, 4, dtype=torch.float64)])
        overlap, nearest = box_iou(detection["boxes"][chosen].double(), boxes).max(1)
        scores.append(detection["scores"][chosen])
        overlaps.append(overlap.nan_to_num())
        objects.append(nearest + count)
        difficult.append(torch.cat([image.ignored[mine], torch.tensor([False])])[nearest])
        count += len(boxes)
    order = torch.cat(scores).argsort(descending=True, stable=True)
    return torch.cat(overlaps)[order], torch.cat(objects)[order], torch.cat(difficult)[order]


def _right(overlaps: Tensor, objects: Tensor, difficult: Tensor, threshold: float) -> Tensor:
    """Per detection True where it is right; those of difficult objects are left out."""
    hits = overlaps > threshold
    taken: set[int] = set()
    verdicts = []
    for hit, target, is_difficult in zip(
        hits.tolist(), objects.tolist(), difficult.tolist(), strict=True
    ):
        if hit and is_difficult:
            continue
        verdicts.append(hit and target not in taken)
        if hit:
            taken.add(target)
    return torch.tensor(verdicts, dtype=torch.bool)
