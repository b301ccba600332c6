"""Data sets of the transfer tasks, checked when they are opened.

>>> import tempfile
>>> from pathlib import Path
>>> from eval.data import DETECTION
>>> folder = Path(tempfile.mkdtemp()) / "scenes"
>>> data = DETECTION["digit_scenes"](folder, classes=2, train_images=2, test_images=1)
>>> data.class_names, len(data.train), data.train[0].pixels().shape
(('0', '1'), 2, torch.Size([3, 64, 64]))
"""

from compress.data.dense.masked_images import IGNORE_INDEX, MaskedImage, SegmentationData
from eval.data.annotations import AnnotatedImage, DetectionData
from eval.data.coco import coco
from eval.data.detection import DATASETS as DETECTION
from eval.data.labelled import DATASETS as LABELLED
from eval.data.labelled import stl10, tiny_imagenet
from eval.data.segmentation import DATASETS as SEGMENTATION
from eval.data.voc import voc

__all__ = [
    "DETECTION",
    "IGNORE_INDEX",
    "LABELLED",
    "SEGMENTATION",
    "AnnotatedImage",
    "DetectionData",
    "MaskedImage",
    "SegmentationData",
    "coco",
    "stl10",
    "tiny_imagenet",
    "voc",
]
