"""The detector and its metric: hand-made cases of average precision, and a loss that falls."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from compress.engine import TrainSettings
from compress.errors import UserError
from compress.model_files import Encoder, origins_of
from compress.run.directory import RunDirectory
from compress.seeding import seeded
from eval.data import AnnotatedImage, DetectionData, coco
from eval.data.masks import encode_masks
from eval.detection import (
    Design,
    DetectorLoss,
    average_precision,
    build_detector,
    detect,
    detection,
)
from eval.detection.backbone import DetectorBackbone
from eval.detection.examples import example
from eval.detection.model import Images, Targets
from eval.detection.settings import check_numbers
from eval.detection.task import common_head
from eval.transfer.context import TransferContext
from eval.transfer.pictures import MISSED, draw_detections
from tests.eval.runs import write_run

Write = Callable[..., Path]


def detector(encoder: Encoder, **changes: Any) -> Any:
    design = Design(
        **{
            "stride": 4,
            "anchor_ratios": (1.0,),
            "rois_per_image": 8,
            "proposals": 20,
            "head_width": 16,
            **changes,
        }
    )
    return build_detector(design, encoder, encoder, classes=3, seed=0)


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


def trained(module: DetectorLoss, pair: tuple[Images, Targets], steps: int) -> list[float]:
    """The loss of each step."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    with seeded(0, "test"):
        for _ in range(steps):
            loss = torch.stack(list(module(pair).values())).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_loss_falls_and_reaches_every_parameter(encoder: Encoder, scenes: Write) -> None:
    root = scenes(train=4)
    module = DetectorLoss(detector(encoder))
    losses = trained(module, batch(coco(root, root=str(root))), 8)
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
        outputs = detect(detector(encoder, image_size=image_size), images, 3, torch.device("cpu"))
        assert len(outputs) == len(images)
        for output in outputs:
            assert output["boxes"].shape[1] == 4
            assert ((output["boxes"] >= 0) & (output["boxes"] <= 64)).all()


def test_frozen_encoder_gives_the_same_maps_after_training(encoder: Encoder, scenes: Write) -> None:
    root, images = scenes(train=4), torch.rand(2, 3, 32, 32)
    data = batch(coco(root, root=str(root)))
    before = encoder.eval()(images).detach().clone()
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    module = DetectorLoss(detector(encoder, freeze_encoder=True).train())
    losses = trained(module, data, 4)
    assert losses[-1] < losses[0]
    assert not any(p.requires_grad for p in encoder.parameters())
    assert torch.equal(module.train().detector.backbone(images), before)
    assert all(torch.equal(state[k], v) for k, v in encoder.state_dict().items())

    # A free one changes, and so do its batch norm's statistics.
    free = copy.deepcopy(encoder).requires_grad_(True)
    trained(DetectorLoss(detector(free)).train(), data, 1)
    assert not torch.equal(free.eval()(images), before)
    assert not torch.equal(free.state_dict()["body.1.running_mean"], state["body.1.running_mean"])


def test_stem_pooling_shows_the_encoder_less(encoder: Encoder) -> None:
    images = torch.rand(1, 3, 64, 64)
    expected = encoder.eval().body[1:](functional.max_pool2d(encoder.body[0](images), 4))
    pooled = DetectorBackbone(encoder, 16, pool_stem=True).eval()(images)
    assert pooled.shape == (1, 8, 4, 4)
    torch.testing.assert_close(pooled, expected)


def test_stride_is_that_of_a_dry_run_whatever_the_encoder_says(encoder: Encoder) -> None:
    encoder.stride = 16
    assert DetectorBackbone(encoder, 8)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 8, 8)


def test_pictures_show_boxes_and_tint_masks(tmp_path: Path, scenes: Write) -> None:
    root = scenes(test=1)
    image = coco(root, root=str(root)).test[0]
    image = replace(image, ignored=torch.ones_like(image.ignored))  # no frame says: missed
    nothing: dict[str, Any] = found([], [], []) | {"segments": []}
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 20:40, 20:40] = True
    one: dict[str, Any] = found([[20, 20, 40, 40]], [1], [0.9]) | {"segments": encode_masks(mask)}
    for name, detections in (("nothing", nothing), ("one", one)):
        draw_detections(tmp_path / f"{name}.png", [image], [detections], ("a", "b", "c"))
    without, drawn = (
        np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("nothing", "one")
    )
    changed = np.abs(without - drawn).sum(2) > 0
    assert changed[100:150, 100:150].mean() > 0.8  # 64 pixels are drawn as 256
    assert not changed[170:].any() and not changed[:, 170:].any()


def test_pictures_tell_found_objects_from_missed_ones(tmp_path: Path, scenes: Write) -> None:
    root = scenes(test=1)
    image = coco(root, root=str(root)).test[0]
    boxes, labels = image.boxes.tolist(), image.labels.tolist()

    def red(name: str, detections: dict[str, Any]) -> int:
        draw_detections(tmp_path / name, [image], [detections], ("a", "b", "c"))
        pixels = np.asarray(Image.open(tmp_path / name))
        return int((pixels == MISSED).all(2).sum())

    all_found = found(boxes, labels, [0.9] * len(boxes))
    assert red("all.png", all_found) == 0
    assert red("none.png", found([], [], [])) > 0
    of_others = found(boxes, [label % 3 + 1 for label in labels], [0.9] * len(boxes))
    assert red("others.png", of_others) > 0
    assert red("unsure.png", found(boxes, labels, [0.4] * len(boxes))) > 0


def test_fine_map_is_pooled_to_the_stride(encoder: Encoder) -> None:
    assert DetectorBackbone(encoder, 16)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 4, 4)
    assert DetectorBackbone(encoder, 2)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 16, 16)
    with pytest.raises(UserError, match="stride 6"):
        DetectorBackbone(encoder, 6)


def test_task_trains_masks_on_a_frozen_encoder_and_names_its_protocols(
    scenes: Write, tmp_path: Path
) -> None:
    root = scenes(train=4, test=2)
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation["segmentation"] = [corners]
        path.write_text(json.dumps(content))
    context = TransferContext(
        run=RunDirectory(tmp_path, "run"),
        stage="entry",
        students=origins_of(write_run(tmp_path / "run")),
        main="kd",
        inits=("distilled", "scratch"),
        data={"name": "coco", "root": str(root)},
        settings=TrainSettings(epochs=1, lr=0.01, batch_size=2),
        device=torch.device("cpu"),
        seeds=(0, 1),
    )
    values = detection(
        context, detector="mask_rcnn", metric="voc07", head_width=8, freeze_encoder=True
    )
    kinds = {f"{kind}{ap}_percent" for kind in ("", "mask_") for ap in ("ap", "ap50", "ap75")}
    assert all({*row["metrics"]} == kinds for row in values["rows"])
    assert values["protocol"].startswith("Mask R-CNN with a two-layer head; PASCAL VOC 2007")
    assert "masks are judged" in values["protocol"]
    assert len(values["pictures"]) == 2
    assert all((context.folder / picture).is_file() for picture in values["pictures"])


def test_inits_that_would_get_different_heads_are_refused_before_anything(tmp_path: Path) -> None:
    students = origins_of(write_run(tmp_path / "run"))
    context = TransferContext(
        run=RunDirectory(tmp_path, "run"),
        stage="entry",
        students={**students, "kd": "torchvision:resnet18"},
        main="kd",
        inits=("distilled", "alone"),
        data={"name": "coco", "root": "not even opened"},
        settings=TrainSettings(epochs=1, lr=0.01, batch_size=2),
        device=torch.device("cpu"),
    )
    with pytest.raises(UserError, match=r"distilled c4, alone two_fc.*--head two_fc"):
        detection(context)
    with pytest.raises(UserError, match=r"this student is a .*--head two_fc"):
        detection(context, head="c4")
    assert common_head(context, Design(head="two_fc")) == "two_fc"
    assert common_head(replace(context, inits=("distilled", "scratch")), Design()) == "c4"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        *(
            (name, 0, "is at least 1, got 0")
            for name in (
                "image_size",
                "longest_side",
                "stride",
                "rois_per_image",
                "roi_size",
                "proposals",
                "test_proposals",
                "head_width",
            )
        ),
        ("image_size", (64, -1), "is at least 1, got -1"),
        ("image_size", (), "is empty"),
        ("anchor_sizes", (16, 0), "is at least 1, got 0"),
        ("anchor_ratios", (1.0, 0.0), "is finite and above 0, got 0.0"),
        ("anchor_ratios", (float("nan"),), "is finite and above 0, got nan"),
    ],
)
def test_numbers_that_make_no_detector_are_refused(name: str, value: Any, says: str) -> None:
    # Before anything is opened: the context has no data that could be.
    context: Any = None
    with pytest.raises(UserError, match=f"^detection: {name} {says}"):
        detection(context, **{name: value})


def test_numbers_by_default_are_taken() -> None:
    check_numbers(Design())
    check_numbers(Design(image_size=(64, 96), anchor_ratios=(0.5,), anchor_sizes=(16,)))
