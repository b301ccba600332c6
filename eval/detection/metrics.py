"""Average precision of boxes and of masks as COCO defines it, by faster-coco-eval."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from eval.data.annotations import AnnotatedImage
from eval.data.masks import encode_segment
from eval.detection.voc_metric import PROTOCOL as VOC_PROTOCOL
from eval.detection.voc_metric import voc_average_precision

PROTOCOL = (
    "COCO average precision (101-point interpolation, 100 detections per image) on the test "
    "images after the last epoch; AP is the mean over IoU .50 to .95"
)
Metric = Literal["coco", "voc07"]


def average_precision(
    images: Sequence[AnnotatedImage], detections: Sequence[dict[str, Any]], class_count: int
) -> dict[str, float]:
    """AP, AP50 and AP75 in percent, averaged over the classes that occur in `images`.

    detections[i] has boxes (n, 4) x0 y0 x1 y1, labels (n,) from 1 and scores (n,) of images[i].
    Ignored boxes count neither as found nor as missed.
    """
    return _coco(images, detections, class_count, "bbox")


def mask_average_precision(
    images: Sequence[AnnotatedImage], detections: Sequence[dict[str, Any]], class_count: int
) -> dict[str, float]:
    """The same of masks, under keys that begin with `mask_`.

    detections[i] has, besides, `segments`: the run lengths of each of its n masks.
    """
    values = _coco(images, detections, class_count, "segm")
    return {f"mask_{key}": value for key, value in values.items()}


# Name -> the metric of boxes, and its description in a report.
BOX_METRICS: Mapping[str, tuple[Callable[..., dict[str, float]], str]] = {
    "coco": (average_precision, PROTOCOL),
    "voc07": (voc_average_precision, VOC_PROTOCOL),
}


def _coco(
    images: Sequence[AnnotatedImage],
    detections: Sequence[dict[str, Any]],
    class_count: int,
    kind: Literal["bbox", "segm"],
) -> dict[str, float]:
    truth = COCO(ground_truth(images, class_count, kind), print_function=_silent)
    rows = _detections(detections, kind)
    if not rows or not truth.anns:
        return {"ap_percent": 0.0, "ap50_percent": 0.0, "ap75_percent": 0.0}
    evaluation = COCOeval_faster(truth, truth.loadRes(rows), iouType=kind, print_function=_silent)
    evaluation.run()
    ap, ap50, ap75 = (100 * max(0.0, float(value)) for value in evaluation.stats[:3])
    return {"ap_percent": ap, "ap50_percent": ap50, "ap75_percent": ap75}


def _silent(*_: object) -> None:
    """In place of the evaluator's printed table."""


def ground_truth(
    images: Sequence[AnnotatedImage], class_count: int, kind: Literal["bbox", "segm"]
) -> dict[str, Any]:
    """The images and their objects in COCO's format; images and categories count from 1."""
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        boxes = as_xywh(image.boxes)
        size = (image.height, image.width)
        for row, (box, label, ignored) in enumerate(
            zip(boxes, image.labels.tolist(), image.ignored.tolist(), strict=True)
        ):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": index + 1,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(ignored),
            }
            if kind == "segm":
                assert image.segments is not None
                annotation["segmentation"] = encode_segment(image.segments[row], size)
            annotations.append(annotation)
    return {
        "images": [
            {"id": index + 1, "height": image.height, "width": image.width}
            for index, image in enumerate(images)
        ],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(class_count)],
    }


def result_rows(detections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The detections of each image as COCO's result rows, with boxes and, if there are, masks."""
    rows = _detections(detections, "bbox")
    if any("segments" in detection for detection in detections):
        masks = _detections(detections, "segm")
        rows = [{**mask, **box} for mask, box in zip(masks, rows, strict=True)]
    return rows


def _detections(
    detections: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> list[dict[str, Any]]:
    """The evaluator's rows: of boxes their corner and size, of masks their run lengths."""
    rows: list[dict[str, Any]] = []
    for index, detection in enumerate(detections):
        key = "bbox" if kind == "bbox" else "segmentation"
        places = as_xywh(detection["boxes"]) if kind == "bbox" else detection["segments"]
        rows += [
            {"image_id": index + 1, "category_id": label, key: place, "score": score}
            for place, label, score in zip(
                places, detection["labels"].tolist(), detection["scores"].tolist(), strict=True
            )
        ]
    return rows


def as_xywh(boxes: Tensor) -> list[list[float]]:
    """(n, 4) x0 y0 x1 y1 -> lists of x0 y0 width height."""
    rows: list[list[float]] = (
        boxes - boxes[:, [0, 1, 0, 1]] * boxes.new_tensor([0, 0, 1, 1])
    ).tolist()
    return rows
