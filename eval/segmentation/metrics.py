"""Mean intersection over union from one confusion matrix over the whole test split."""

import torch
from torch import Tensor

PROTOCOL = (
    "mean intersection over union on the test images after the last epoch, from one confusion "
    "matrix over all pixels (void ignored, background counted as a class, classes absent from both "
    "truth and prediction left out of the mean)"
)


def confusion_matrix(truth: Tensor, prediction: Tensor, *, classes: int, void: int) -> Tensor:
    """Counts (K, K) int64: row = true class, column = predicted; void pixels dropped."""
    valid = truth != void
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
