"""The data sets of the detection task, by name."""

from collections.abc import Callable, Mapping

from eval.data.annotations import DetectionData
from eval.data.boxes import boxes
from eval.data.coco import coco
from eval.data.digit_scenes import digit_scenes_read_by
from eval.data.voc import voc

DATASETS: Mapping[str, Callable[..., DetectionData]] = {
    "coco": coco,
    "voc": voc,
    "boxes": boxes,
    "digit_scenes": digit_scenes_read_by(
        lambda folder, _: coco(folder, root=str(folder)), usual_classes=10
    ),
}
