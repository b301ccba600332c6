"""Detections as files in COCO's result format, and the truth beside them.

`detections.json` of a training is what COCO's tools load as results: image_id, category_id, bbox
(x, y, width, height), score, and of a mask detector segmentation (run lengths). The entry's
`ground_truth.json` holds the test images and their boxes under the same ids, whatever format they
were read from:

    truth = COCO("ground_truth.json")
    evaluation = COCOeval(truth, truth.loadRes("INIT/seed-0/detections.json"), "bbox")

VOC's difficult objects are crowds in it, as COCO's tools know nothing nearer.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from compress.console.messages import log
from compress.errors import UserError
from compress.storage.files import read_json, write_text
from eval.data.annotations import AnnotatedImage, DetectionData
from eval.detection.metrics import ground_truth, result_rows

DETECTIONS, GROUND_TRUTH = "detections.json", "ground_truth.json"
MOST_ROWS = 1_000_000  # about 150 MB; COCO's 5,000 validation images have at most 500,000


def write_ground_truth(path: Path, data: DetectionData, *, masks: bool) -> None:
    """Write the test images with their boxes, of a mask detector's data their outlines too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = ground_truth(data.test, len(data.class_names), "segm" if masks else "bbox")
    for entry, image in zip(content["images"], data.test, strict=True):
        entry["file_name"] = image.path.name
    for entry, name in zip(content["categories"], data.class_names, strict=True):
        entry["name"] = name
    write_text(path, _text(content))


def write_detections(
    path: Path, detections: Sequence[dict[str, Any]], *, most: int = MOST_ROWS
) -> None:
    """Write the detections of all test images; of more than `most` those with the best scores."""
    rows = [row for row in result_rows(detections) if all(map(isfinite, _numbers(row)))]
    if len(rows) > most:
        log(f"  {path.name}: the {most:,} best of {len(rows):,} detections are kept")
        least = sorted((row["score"] for row in rows), reverse=True)[most - 1]
        rows = [row for row in rows if row["score"] >= least][:most]
    write_text(path, _text(rows))


def read_detections(path: Path, images: Sequence[AnnotatedImage]) -> list[list[dict[str, Any]]]:
    """The rows of each image, best score first.

    Raises:
        UserError: the file is not there, or it is of other images.
    """
    if not path.is_file():
        raise UserError(f"{path} not found (looked in {Path.cwd()})")
    by_image: list[list[dict[str, Any]]] = [[] for _ in images]
    try:
        for row in read_json(path):
            by_image[row["image_id"] - 1].append(row)
    except (IndexError, KeyError, TypeError):
        raise UserError(f"{path} is damaged, or of other images") from None
    return by_image


def _numbers(row: Mapping[str, Any]) -> list[float]:
    """Those of which a network that learned nothing may make no numbers, which JSON has not."""
    return [*row["bbox"], row["score"]]


def _text(content: Any) -> str:
    """One line: numbers as they are, run lengths as text."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False, default=_ascii) + "\n"


def _ascii(counts: bytes) -> str:
    return counts.decode("ascii")
