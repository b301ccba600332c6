"""Average precision of test images that count several times or not at all, for a bootstrap.

Which detections are right depends on their own image alone; only the order of their scores and the
counts run over all images. So detections are matched once, and each resample is a weighted sum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from compress.comparison.bootstrap import Weights
from eval.data.annotations import AnnotatedImage
from eval.detection.metrics import Metric, as_xywh
from eval.detection.voc_metric import THRESHOLDS, nearest_objects, verdicts

_RECALLS: Mapping[Metric, NDArray[np.float64]] = {
    "coco": np.asarray(np.linspace(0, 1, 101), dtype=np.float64),
    "voc07": np.asarray([step * 0.1 for step in range(11)], dtype=np.float64),
}
_MOST = 100  # detections of an image and a class that COCO counts
Rows = Sequence[Sequence[Mapping[str, Any]]]  # COCO's result rows of each image


@dataclass(frozen=True)
class ClassMatches:
    """The n detections of one class, best score first, at each of T thresholds of the IoU.

    image (n,): the number of its image; right (T, n); counted (T, n): False for one that is neither
    right nor wrong; objects (N,): the class's objects in each image.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]


def coco_matches(
    images: Sequence[AnnotatedImage], rows: Rows, class_count: int
) -> list[ClassMatches]:
    """Match as COCO does: each detection takes the object of the largest IoU that is still free.

    An ignored object (a crowd) may be taken by several, which then do not count.
    """
    return [_coco_class(images, rows, label) for label in range(1, class_count + 1)]


def _coco_class(images: Sequence[AnnotatedImage], rows: Rows, label: int) -> ClassMatches:
    parts: list[tuple[list[float], NDArray[np.bool_], NDArray[np.bool_]]] = []
    for image, detections in zip(images, rows, strict=True):
        mine = image.labels == label
        own = [row for row in detections if row["category_id"] == label]
        own = sorted(own, key=lambda row: -row["score"])[:_MOST]
        crowds = image.ignored[mine].numpy()
        # Objects that count come first, so that a crowd is taken last.
        order = np.argsort(crowds, kind="stable")
        boxes = np.array(as_xywh(image.boxes[mine])).reshape(-1, 4)[order]
        right, counted = _match([row["bbox"] for row in own], boxes, crowds[order])
        parts.append(([row["score"] for row in own], right, counted))
    objects = [int(((i.labels == label) & ~i.ignored).sum()) for i in images]
    scores = np.concatenate([np.array(part[0]) for part in parts])
    order = np.argsort(-scores, kind="stable")
    image_of = np.repeat(np.arange(len(images)), [len(part[0]) for part in parts])
    right, counted = (np.concatenate([part[k] for part in parts], axis=1) for k in (1, 2))
    return ClassMatches(image_of[order], right[:, order], counted[:, order], np.array(objects))


def _match(
    detections: Sequence[Any], boxes: NDArray[np.float64], crowds: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of one image and class: right and counted (T, n), detections from the surest on."""
    right = np.zeros((len(THRESHOLDS), len(detections)), dtype=bool)
    counted = np.ones_like(right)
    if not len(detections) or not len(boxes):
        return right, counted
    overlaps = coco_mask.iou(np.array(detections), boxes, crowds.astype(np.uint8).tolist())
    for level, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(boxes), dtype=bool)
        for place, overlap in enumerate(np.asarray(overlaps)):
            able = (free | crowds) & (overlap >= min(threshold, 1 - 1e-10))
            able &= ~crowds if (able & ~crowds).any() else True
            if not able.any():
                continue
            # Of equal overlaps COCO takes the last.
            best = len(boxes) - 1 - int(np.argmax(np.where(able, overlap, -1.0)[::-1]))
            free[best] = False
            right[level, place] = not crowds[best]
            counted[level, place] = not crowds[best]
    return right, counted


def voc_matches(
    images: Sequence[AnnotatedImage], rows: Rows, class_count: int
) -> list[ClassMatches]:
    """Match as VOC 2007 does, see `eval.detection.voc_metric`."""
    detections = [
        {
            "boxes": torch.tensor([_corners(row["bbox"]) for row in own]).reshape(-1, 4),
            "labels": torch.tensor([row["category_id"] for row in own], dtype=torch.int64),
            "scores": torch.tensor([row["score"] for row in own]),
        }
        for own in rows
    ]
    matches = []
    for label in range(1, class_count + 1):
        nearest = nearest_objects(images, detections, label)
        levels = [verdicts(nearest, threshold) for threshold in THRESHOLDS]
        right = np.array([[bool(v) for v in level] for level in levels])
        counted = np.array([[v is not None for v in level] for level in levels])
        objects = np.array([int(((i.labels == label) & ~i.ignored).sum()) for i in images])
        matches.append(ClassMatches(nearest.images.numpy(), right, counted, objects))
    return matches


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


MATCHES: Mapping[Metric, Callable[..., list[ClassMatches]]] = {
    "coco": coco_matches,
    "voc07": voc_matches,
}


def weighted_precision(
    matches: Sequence[ClassMatches], weights: Weights, metric: Metric
) -> dict[str, float]:
    """AP, AP50 and AP75 in percent over the classes that occur, as `metrics.BOX_METRICS` has them.

    weights: (N,), how often each image counts.
    """
    rows = []
    for one in matches:
        objects = int(weights @ one.objects)
        if objects:
            rows.append(_precision(one, weights[one.image], objects, _RECALLS[metric]))
    if not rows:
        return {"ap_percent": 0.0, "ap50_percent": 0.0, "ap75_percent": 0.0}
    means = 100 * np.stack(rows).mean(0)
    ap50, ap75 = float(means[0]), float(means[5])
    return {"ap_percent": float(means.mean()), "ap50_percent": ap50, "ap75_percent": ap75}


def _precision(
    one: ClassMatches, weights: Weights, objects: int, recalls: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(T,): mean over the recalls of the best precision at that recall or a higher one."""
    hits = np.cumsum(one.right * weights, axis=1)
    seen = np.cumsum(one.counted * weights, axis=1)
    precision = hits / np.maximum(seen, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # beyond the last recall
    recall = hits / objects
    return np.array(
        [np.mean(row[np.searchsorted(r, recalls)]) for row, r in zip(best, recall, strict=True)]
    )
