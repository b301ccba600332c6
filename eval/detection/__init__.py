"""Object detection with the distilled encoder as the backbone of a Faster or Mask R-CNN.

>>> from pathlib import Path
>>> import torch
>>> from eval.data import AnnotatedImage
>>> from eval.detection import average_precision
>>> boxes, labels = torch.tensor([[4.0, 4.0, 20.0, 24.0]]), torch.tensor([1])
>>> image = AnnotatedImage(Path("a.png"), 32, 32, boxes, labels, torch.tensor([False]))
>>> detections = [{"boxes": boxes, "labels": labels, "scores": torch.tensor([0.9])}]
>>> round(average_precision([image], detections, class_count=1)["ap_percent"])
100
"""

from eval.detection.inference import detect
from eval.detection.metrics import average_precision, mask_average_precision
from eval.detection.model import Design, DetectorLoss, build_detector
from eval.detection.settings import DetectionSettings
from eval.detection.task import detection
from eval.detection.voc_metric import voc_average_precision

__all__ = [
    "Design",
    "DetectionSettings",
    "DetectorLoss",
    "average_precision",
    "build_detector",
    "detect",
    "detection",
    "mask_average_precision",
    "voc_average_precision",
]
