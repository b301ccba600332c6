"""Mean intersection over union from one confusion matrix over the whole test split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.comparison.bootstrap import ImageMetrics, Weights

PROTOCOL = (
    "mean intersection over union on the test images after the last epoch, from one confusion "
    "matrix over all pixels (void ignored, background counted as a class, classes absent from both "
    "truth and prediction left out of the mean)"
)


def confusion_matrix(
    truth: Tensor, prediction: Tensor, *, classes: int, ignore_index: int
) -> Tensor:
    """Counts (K, K) int64: row = true class, column = predicted; pixels of ignore_index dropped."""
    valid = truth != ignore_index
    cells = truth[valid].long() * classes + prediction[valid].long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """(K,) float64 in 0..1: intersection / union; NaN for a class that is neither true nor said."""
    intersection = confusion.diagonal().double()
    union = (confusion.sum(0) + confusion.sum(1)).double() - intersection
    return intersection / torch.where(union > 0, union, torch.nan)


def segmentation_metrics(confusion: Tensor) -> dict[str, float]:
    """Mean IoU and pixel accuracy in percent, and how many classes were left out as absent."""
    iou = iou_per_class(confusion)
    present = ~iou.isnan()
    return {
        "miou_percent": 100 * float(iou[present].mean()),
        "pixel_accuracy_percent": 100 * float(confusion.diagonal().sum() / confusion.sum()),
        "absent_classes": int((~present).sum()),
    }


@dataclass(frozen=True)
class Majority:
    """The most frequent class of the masks, and what it would score everywhere, in percent."""

    label: int
    miou_percent: float
    pixel_percent: float


def majority(masks: Iterable[Tensor], classes: int, ignore_index: int) -> Majority:
    """Score the best constant prediction on masks (H, W): the least that is to be beaten."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for mask in masks:
        counts += torch.bincount(mask[mask != ignore_index], minlength=classes)
    label = int(counts.argmax())
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    confusion[:, label] = counts
    metrics = segmentation_metrics(confusion)
    return Majority(label, metrics["miou_percent"], metrics["pixel_accuracy_percent"])


def read_confusion(path: Path) -> NDArray[np.int32] | None:
    """The counts (N, K, K) of every test image that a file holds; None where there are none."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            confusion: NDArray[np.int32] = file["confusion"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return confusion if confusion.ndim == 3 and len(confusion) else None


def image_metrics(confusion: NDArray[np.int32]) -> ImageMetrics:
    """`segmentation_metrics` as a function of how often each image (N, K, K) counts."""
    images, classes, _ = confusion.shape
    flat = confusion.reshape(images, -1).astype(np.float64)  # exact below 2^53

    def of_weights(weights: Weights) -> dict[str, float]:
        counts = torch.from_numpy(weights @ flat).long().reshape(classes, classes)
        return segmentation_metrics(counts)

    return ImageMetrics(images, of_weights)
