"""Semantic segmentation with the distilled encoder under a pyramid pooling head.

>>> import torch
>>> from eval.segmentation import confusion_matrix, segmentation_metrics
>>> truth = torch.tensor([[0, 0, 1, 255]])
>>> prediction = torch.tensor([[0, 1, 1, 1]])
>>> confusion = confusion_matrix(truth, prediction, classes=2, ignore_index=255)
>>> segmentation_metrics(confusion)["miou_percent"]
50.0
"""

from compress.models.segmentation.pyramid import PyramidPoolingHead
from compress.tasks.confusion import confusion_matrix, iou_per_class, segmentation_metrics
from eval.segmentation.describe import describe_architecture
from eval.segmentation.model import SegmentationLoss, Segmenter
from eval.segmentation.task import segmentation

__all__ = [
    "PyramidPoolingHead",
    "SegmentationLoss",
    "Segmenter",
    "confusion_matrix",
    "describe_architecture",
    "iou_per_class",
    "segmentation",
    "segmentation_metrics",
]
