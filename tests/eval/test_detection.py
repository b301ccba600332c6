"""The detector and its metric: hand-made cases of average precision, and a loss that falls."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.deployment import Encoder
from compress.errors import UserError
from compress.randomness import seeded
from eval.detection.annotations import AnnotatedImage, DetectionData
from eval.detection.coco import coco
from eval.detection.metrics import average_precision
from eval.detection.model import Backbone, DetectorLoss, Images, Targets, build_detector
from eval.detection.task import detect, example

Write = Callable[..., Path]


def detector(encoder: Encoder, image_size: int | None = None):  # type: ignore[no-untyped-def]
    return build_detector(
        encoder,
        classes=3,
        stride=4,
        image_size=image_size,
        anchor_sizes=(16, 24),
        anchor_ratios=(1.0,),
        rois_per_image=8,
        proposals=20,
        head_width=16,
        seed=0,
    )


def batch(data: DetectionData) -> tuple[Images, Targets]:
    pairs = [example(data, index, mirrored=False) for index in range(len(data.train))]
    return [pixels.float() / 255 for pixels, _ in pairs], [target for _, target in pairs]


def annotated(boxes: list[list[float]], labels: list[int], ignored: list[bool]) -> AnnotatedImage:
    return AnnotatedImage(
        Path("none"), 64, 64, torch.tensor(boxes), torch.tensor(labels), torch.tensor(ignored)
    )


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
    }


def test_perfect_detections_have_full_precision(
    scenes: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    root = scenes()
    data = coco(root, root=str(root))
    perfect = [
        {"boxes": i.boxes, "labels": i.labels, "scores": torch.ones(len(i.labels))}
        for i in data.test
    ]
    assert average_precision(data.test, perfect, 3) == {
        "ap_percent": pytest.approx(100),
        "ap50_percent": pytest.approx(100),
        "ap75_percent": pytest.approx(100),
    }
    assert capsys.readouterr() == ("", "")


def test_box_of_iou_two_thirds_counts_up_to_its_threshold() -> None:
    # 20 x 30 inside 20 x 20 moved apart by nothing: IoU = 400 / 600, so 4 of 10 thresholds hold.
    truth = [annotated([[0, 0, 20, 20]], [1], [False])]
    metrics = average_precision(truth, [found([[0, 0, 20, 30]], [1], [0.9])], 1)
    assert metrics["ap50_percent"] == pytest.approx(100)
    assert metrics["ap75_percent"] == pytest.approx(0)
    assert metrics["ap_percent"] == pytest.approx(40)


def test_a_false_alarm_above_the_only_hit_halves_the_precision() -> None:
    truth = [annotated([[0, 0, 20, 20]], [1], [False])]
    boxes = [[40.0, 40.0, 60.0, 60.0], [0.0, 0.0, 20.0, 20.0]]
    assert average_precision(truth, [found(boxes, [1, 1], [0.9, 0.8])], 1)[
        "ap50_percent"
    ] == pytest.approx(50)


def test_wrong_label_and_no_detection_count_nothing() -> None:
    truth = [annotated([[0, 0, 20, 20]], [1], [False])]
    wrong = average_precision(truth, [found([[0, 0, 20, 20]], [2], [0.9])], 2)
    nothing = average_precision(truth, [found([], [], [])], 2)
    assert wrong["ap50_percent"] == nothing["ap50_percent"] == 0


def test_ignored_object_is_neither_missed_nor_a_false_alarm() -> None:
    truth = [annotated([[0, 0, 20, 20], [40, 40, 60, 60]], [1, 1], [False, True])]
    hit, ignored = [0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 60.0, 60.0]
    for boxes in ([hit], [ignored, hit]):
        scores = [0.9, 0.8][: len(boxes)]
        metrics = average_precision(truth, [found(boxes, [1] * len(boxes), scores)], 1)
        assert metrics["ap50_percent"] == pytest.approx(100)


def test_loss_falls_and_reaches_every_parameter(encoder: Encoder, scenes: Write) -> None:
    root = scenes(train=4)
    module = DetectorLoss(detector(encoder))
    images, targets = batch(coco(root, root=str(root)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    with seeded(0, "test"):
        for _ in range(8):
            loss = torch.stack(list(module((images, targets)).values())).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None for p in module.parameters())


def test_images_without_objects_train_too(encoder: Encoder) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    terms = DetectorLoss(detector(encoder))(([torch.rand(3, 64, 64)] * 2, [nothing] * 2))
    assert all(torch.isfinite(term) for term in terms.values())


def test_training_and_evaluation_see_the_same_pixels(encoder: Encoder) -> None:
    transform = detector(encoder).transform
    image = torch.rand(3, 64, 64)
    seen = [transform.train(mode)([image])[0].tensors for mode in (True, False)]
    expected = (image - 0.3) / 0.3
    for tensors in seen:
        torch.testing.assert_close(tensors[0], expected)


def test_detections_lie_in_images_of_any_size(encoder: Encoder, scenes: Write) -> None:
    root = scenes()
    images = coco(root, root=str(root)).test
    for image_size in (None, 96):
        outputs = detect(detector(encoder, image_size), images, 3, torch.device("cpu"))
        assert len(outputs) == len(images)
        for output in outputs:
            assert output["boxes"].shape[1] == 4
            assert ((output["boxes"] >= 0) & (output["boxes"] <= 64)).all()


def test_fine_map_is_pooled_to_the_stride(encoder: Encoder) -> None:
    assert Backbone(encoder, 16)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 4, 4)
    assert Backbone(encoder, 2)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 16, 16)
    with pytest.raises(UserError, match="stride 6"):
        Backbone(encoder, 6)
