"""Average precision as COCO defines it, by faster-coco-eval."""

from collections.abc import Sequence
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from eval.detection.annotations import AnnotatedImage

PROTOCOL = (
    "COCO average precision (101-point interpolation, 100 detections per image) on the test "
    "images after the last epoch; AP is the mean over IoU .50 to .95"
)


def average_precision(
    images: Sequence[AnnotatedImage], detections: Sequence[dict[str, Tensor]], class_count: int
) -> dict[str, float]:
    """AP, AP50 and AP75 in percent, averaged over the classes that occur in `images`.

    detections[i] has boxes (n, 4) x0 y0 x1 y1, labels (n,) from 1 and scores (n,) of images[i].
    Ignored boxes count neither as found nor as missed.
    """
    truth = COCO(_ground_truth(images, class_count), print_function=_silent)
    found = _detections(detections)
    if not found or not truth.anns:
        return {"ap_percent": 0.0, "ap50_percent": 0.0, "ap75_percent": 0.0}
    evaluation = COCOeval_faster(
        truth, truth.loadRes(found), iouType="bbox", print_function=_silent
    )
    evaluation.run()
    ap, ap50, ap75 = (100 * max(0.0, float(value)) for value in evaluation.stats[:3])
    return {"ap_percent": ap, "ap50_percent": ap50, "ap75_percent": ap75}


def _silent(*_: object) -> None:
    """In place of the evaluator's printed table."""


def _ground_truth(images: Sequence[AnnotatedImage], class_count: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        for box, label, ignored in zip(
            _as_xywh(image.boxes), image.labels.tolist(), image.ignored.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(ignored),
                }
            )
    return {
        "images": [
            {"id": index + 1, "height": image.height, "width": image.width}
            for index, image in enumerate(images)
        ],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(class_count)],
    }


def _detections(detections: Sequence[dict[str, Tensor]]) -> list[dict[str, Any]]:
    return [
        {"image_id": index + 1, "category_id": label, "bbox": box, "score": score}
        for index, found in enumerate(detections)
        for box, label, score in zip(
            _as_xywh(found["boxes"]),
            found["labels"].tolist(),
            found["scores"].tolist(),
            strict=True,
        )
    ]


def _as_xywh(boxes: Tensor) -> list[list[float]]:
    """(n, 4) x0 y0 x1 y1 -> lists of x0 y0 width height."""
    rows: list[list[float]] = (
        boxes - boxes[:, [0, 1, 0, 1]] * boxes.new_tensor([0, 0, 1, 1])
    ).tolist()
    return rows
