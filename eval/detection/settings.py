"""The settings of the detection task: its detector, its engine, its metric."""

import math
from dataclasses import dataclass
from typing import Literal

from compress.errors import UserError
from eval.detection.metrics import BOX_METRICS, Metric
from eval.detection.model import Design

Engine = Literal["torchvision", "detectron2"]

_SHOWN = {
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "c4": "C4 head",
    "two_fc": "two-layer head",
}
# Sizes and numbers: 1 or more, each of several, where they are given.
_COUNTS = (
    "image_size",
    "longest_side",
    "stride",
    "anchor_sizes",
    "rois_per_image",
    "roi_size",
    "proposals",
    "test_proposals",
    "head_width",
)


@dataclass(frozen=True)
class DetectionSettings:
    """Detector, engine and metric of a detection entry, the same for every init."""

    design: Design
    engine: Engine = "torchvision"
    metric: Metric = "coco"
    flip: bool = False

    def __post_init__(self) -> None:
        check_numbers(self.design)

    def protocol(self, head: str) -> str:
        """The text that says how the numbers of a report came about.

        Args:
            head: that of every init, see `Design.head_of`.
        """
        detector = self.design.detector
        text = f"{_SHOWN[detector]} with a {_SHOWN[head]}; {BOX_METRICS[self.metric][1]}"
        if self.design.has_masks:
            text += "; masks are judged by COCO's average precision"
        if self.engine == "detectron2":
            text += "; trained and evaluated by detectron2"
        return text


def check_numbers(design: Design) -> None:
    """Refuse sizes and counts below 1, and ratios that are not above 0.

    Raises:
        UserError: one is wrong, or a list of them is empty.
    """
    for name in (*_COUNTS, "anchor_ratios"):
        value = getattr(design, name)
        if value is None:
            continue
        several = value if isinstance(value, (list, tuple)) else (value,)
        if not several:
            raise UserError(f"detection: {name} is empty; name one value at least.")
        for one in several:
            if name in _COUNTS and not one >= 1:
                raise UserError(f"detection: {name} is at least 1, got {one}")
            if not (one > 0 and math.isfinite(one)):
                raise UserError(f"detection: {name} is finite and above 0, got {one}")
