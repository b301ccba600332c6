"""VOC 2007's average precision: worked by hand, against a slow oracle, and its rules one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.data import AnnotatedImage
from eval.detection import voc_average_precision
from eval.detection.voc_metric import eleven_points


def annotated(boxes: Any, labels: Any, difficult: Any = None) -> AnnotatedImage:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    difficult = torch.zeros(len(boxes)) if difficult is None else torch.as_tensor(difficult)
    return AnnotatedImage(
        Path("none"), 99, 99, boxes, torch.as_tensor(labels).long(), difficult.bool()
    )


def found(boxes: Any, labels: Any, scores: Any) -> dict[str, Tensor]:
    return {
        "boxes": torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.as_tensor(labels).long(),
        "scores": torch.as_tensor(scores, dtype=torch.float32),
    }


def test_worked_by_hand() -> None:
    # Right, wrong, right, wrong, right of 4 objects: recall .25 with precision 1, .5 with 2/3,
    # .75 with 3/5, and nothing from .8 on: 3 of 11 points at 1, 3 at 2/3, 2 at 3/5.
    verdicts = torch.tensor([True, False, True, False, True])
    assert eleven_points(verdicts, 4) == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    assert eleven_points(torch.ones(4, dtype=torch.bool), 4) == pytest.approx(1)
    assert eleven_points(torch.zeros(0, dtype=torch.bool), 4) == 0


@pytest.mark.parametrize("hits", range(11))
def test_recalls_that_lie_at_a_threshold_are_judged_as_detectron2_does(hits: int) -> None:
    # In float64 its thresholds .3, .6 and .7 lie above what 3, 6 and 7 of 10 make.
    reached = sum(hits / 10 >= threshold for threshold in np.arange(0, 1.1, 0.1))
    assert reached == hits + (hits not in (3, 6, 7))
    precision = eleven_points(torch.ones(hits, dtype=torch.bool), 10)
    assert precision == pytest.approx(reached / 11 if hits else 0)


TRUTH = [[10, 10, 30, 30]]


def ap50(image: AnnotatedImage, boxes: Any) -> float:
    scores = [0.9 - 0.1 * row for row in range(len(boxes))]
    detections = found(boxes, [1] * len(boxes), scores)
    return voc_average_precision([image], [detections], 1)["ap50_percent"]


def test_second_detection_of_an_object_is_wrong() -> None:
    two = annotated([*TRUTH, [50, 50, 70, 70]], [1, 1])
    # Recall .5 at precision 1, then 1 at 2/3: 6 points at 1, 5 at 2/3.
    assert ap50(two, [*TRUTH, *TRUTH, [50, 50, 70, 70]]) == pytest.approx(100 * (6 + 10 / 3) / 11)


def test_difficult_object_is_neither_missed_nor_a_false_alarm() -> None:
    image = annotated([*TRUTH, [50, 50, 70, 70]], [1, 1], [False, True])
    assert ap50(image, TRUTH) == pytest.approx(100)
    assert ap50(image, [[50, 50, 70, 70], [50, 50, 70, 70], *TRUTH]) == pytest.approx(100)
    assert ap50(image, [[60, 10, 80, 30], *TRUTH]) == pytest.approx(50)


def test_iou_of_two_thirds_holds_at_four_thresholds() -> None:
    metrics = voc_average_precision(
        [annotated([[0, 0, 20, 20]], [1])], [found([[0, 0, 20, 30]], [1], [0.9])], 1
    )
    assert metrics == {
        "ap_percent": pytest.approx(40),
        "ap50_percent": pytest.approx(100),
        "ap75_percent": pytest.approx(0),
    }


def test_boxes_are_as_wide_as_the_devkit_counts_them() -> None:
    # The devkit's pixels 1..10 and 6..15 are 10 wide each and share 5: IoU 5 / 15, not 4 / 14.
    shifted = [[5, 0, 15, 10]]
    image = annotated([[0, 0, 10, 10]], [1])
    assert ap50(image, [[0, 0, 10, 20]]) == 0  # half is not above one half
    assert ap50(image, [[0, 0, 10, 19]]) == pytest.approx(100)
    assert ap50(image, shifted) == 0


def test_classes_that_do_not_occur_are_left_out_of_the_mean() -> None:
    image = annotated([*TRUTH, [50, 50, 70, 70]], [1, 3], [False, True])
    assert voc_average_precision([image], [found(TRUTH, [1], [0.9])], 3)["ap50_percent"] == 100
    assert voc_average_precision([annotated([], [])], [found([], [], [])], 3)["ap_percent"] == 0


def oracle(images: list[AnnotatedImage], detections: list[dict[str, Tensor]], label: int) -> float:
    """AP over the ten thresholds as the devkit's loops have it, in pixels that it includes."""
    values = []
    for threshold in [percent / 100 for percent in range(50, 100, 5)]:
        rows = sorted(
            (
                (-float(score), number, box.tolist())
                for number, one in enumerate(detections)
                for box, own, score in zip(one["boxes"], one["labels"], one["scores"], strict=True)
                if own == label
            )
        )
        wanted = sum(int(((i.labels == label) & ~i.ignored).sum()) for i in images)
        done: set[tuple[int, int]] = set()
        right = wrong = 0
        curve = []
        for _, number, (x0, y0, x1, y1) in rows:
            best, which = -1.0, -1
            for index, own in enumerate(images[number].labels.tolist()):
                if own != label:
                    continue
                a0, b0, a1, b1 = images[number].boxes[index].tolist()
                # xmin = x0 + 1 and xmax = x1 of included pixels.
                width = min(x1, a1) - max(x0 + 1, a0 + 1) + 1
                height = min(y1, b1) - max(y0 + 1, b0 + 1) + 1
                if width <= 0 or height <= 0:
                    continue
                shared = width * height
                overlap = shared / ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - shared)
                if overlap > best:
                    best, which = overlap, index
            if best > threshold and images[number].ignored[which]:
                continue
            if best > threshold and (number, which) not in done:
                done.add((number, which))
                right += 1
            else:
                wrong += 1
            curve.append((right / wanted, right / (right + wrong)))
        recalls = np.arange(0, 1.1, 0.1)  # not tenths to the last bit
        points = [max([p for r, p in curve if r >= recall], default=0.0) for recall in recalls]
        values.append(sum(points) / 11)
    return 100 * sum(values) / 10


def test_agrees_with_the_devkits_loops_on_random_boxes() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    images, detections = [], []
    for _ in range(12):
        corners = (random(6, 2) * 60).round()
        boxes = torch.cat([corners, corners + 8 + (random(6, 2) * 20).round()], 1)
        labels = (random(6) * 3).long() + 1
        images.append(annotated(boxes, labels, random(6) < 0.2))
        noisy = torch.cat([boxes + (random(6, 4) * 8 - 4).round(), boxes + 3])
        detections.append(found(noisy, torch.cat([labels, labels]), random(12)))
    expected = sum(oracle(images, detections, label) for label in (1, 2, 3)) / 3
    assert 5 < expected < 95
    got = voc_average_precision(images, detections, 3)["ap_percent"]
    assert got == pytest.approx(expected, abs=1e-9)
