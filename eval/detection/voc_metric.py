"""Average precision of PASCAL VOC 2007: precision at 11 recalls, difficult objects left out.

A detection belongs to the object of its class that it overlaps most, taken or not; it is right
where the IoU is above the threshold and the object was not found before by a surer detection. Of a
difficult object it is neither right nor wrong. Boxes here are half-open, so that x1 - x0 is the
devkit's xmax - xmin + 1. Scores and corners are not rounded, as detectron2 does for its files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from eval.data.annotations import AnnotatedImage

PROTOCOL = (
    "PASCAL VOC 2007 average precision (11 recalls, difficult objects ignored) on the test images "
    "after the last epoch; AP is the mean over IoU .50 to .95"
)
THRESHOLDS = tuple((50 + 5 * step) / 100 for step in range(10))


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
            nearest = nearest_objects(images, detections, label)
            rows.append([eleven_points(_right(nearest, t), objects) for t in THRESHOLDS])
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


class Nearest(NamedTuple):
    """Of a class's n detections, the surest first: what each has to do with the object of the
    class that it overlaps most. All (n,): the IoU, the object's number, whether it is difficult,
    and the number of the image."""

    overlaps: Tensor
    objects: Tensor
    difficult: Tensor
    images: Tensor


def nearest_objects(
    images: Sequence[AnnotatedImage], detections: Sequence[dict[str, Any]], label: int
) -> Nearest:
    """The detections of a class in all images, see `Nearest`."""
    scores, overlaps, objects, difficult, numbers = [], [], [], [], []
    count = 0
    for number, (image, detection) in enumerate(zip(images, detections, strict=True)):
        chosen, mine = detection["labels"] == label, image.labels == label
        # An object that nothing overlaps, so that there is a nearest one in every image.
        boxes = torch.cat([image.boxes[mine].double(), torch.zeros(1, 4, dtype=torch.float64)])
        overlap, nearest = box_iou(detection["boxes"][chosen].double(), boxes).max(1)
        scores.append(detection["scores"][chosen])
        overlaps.append(overlap.nan_to_num())
        objects.append(nearest + count)
        difficult.append(torch.cat([image.ignored[mine], torch.tensor([False])])[nearest])
        numbers.append(torch.full_like(nearest, number))
        count += len(boxes)
    order = torch.cat(scores).argsort(descending=True, stable=True)
    return Nearest(*(torch.cat(parts)[order] for parts in (overlaps, objects, difficult, numbers)))


def verdicts(nearest: Nearest, threshold: float) -> list[bool | None]:
    """Per detection whether it is right; None for one of a difficult object, which is neither."""
    hits = nearest.overlaps > threshold
    taken: set[int] = set()
    is_right: list[bool | None] = []
    for hit, target, is_difficult in zip(
        hits.tolist(), nearest.objects.tolist(), nearest.difficult.tolist(), strict=True
    ):
        if hit and is_difficult:
            is_right.append(None)
            continue
        is_right.append(hit and target not in taken)
        if hit:
            taken.add(target)
    return is_right


def _right(nearest: Nearest, threshold: float) -> Tensor:
    """Per detection True where it is right; those of difficult objects are left out."""
    right = [verdict for verdict in verdicts(nearest, threshold) if verdict is not None]
    return torch.tensor(right, dtype=torch.bool)
