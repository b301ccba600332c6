"""The detectron2 engine: the job's values without detectron2; training and loading with it."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torchvision
from torch import nn

from compress.data import Preprocessing
from compress.engine import TrainSettings
from compress.errors import UserError
from compress.model_files import Encoder, Origin
from compress.run.directory import RunDirectory
from eval.data import AnnotatedImage, DetectionData, coco
from eval.detection import Design, DetectionSettings, average_precision, detectron2_engine
from eval.detection.detectron2_engine import check_loaded, run
from eval.detection.detectron2_job import check_job, dataset_dict, job_config, training_dicts
from eval.detection.detectron2_training import detect
from eval.detection.model import Detector
from eval.transfer.context import Start, TransferContext
from export.detectron2.command import convert_names, expected_missing, full_name, write_network

Write = Callable[..., Path]
needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None,
    reason="detectron2 is not installed; its sources on PYTHONPATH are enough",
)
SMALL = Design(anchor_sizes=(16, 32), rois_per_image=8, roi_size=7, proposals=20)


def context(folder: Path, **changes: Any) -> TransferContext:
    settings = {"epochs": 2, "lr": 1, "batch_size": 2, "momentum": 0.9, **changes}
    return TransferContext(
        run=RunDirectory(folder, "run"),
        stage="transfer/first",
        students={},
        main="kd",
        inits=("distilled",),
        data={"name": "coco"},
        settings=TrainSettings(**settings),
        device=torch.device("cpu"),
    )


def image(**changes: Any) -> AnnotatedImage:
    given = {
        "path": Path("street.png"),
        "height": 4,
        "width": 6,
        "boxes": torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 5.0, 4.0]]),
        "labels": torch.tensor([2, 1]),
        "ignored": torch.tensor([False, True]),
        **changes,
    }
    return AnnotatedImage(**given)


def data(*images: AnnotatedImage, trains_on_ignored: bool = False) -> DetectionData:
    return DetectionData(("cat", "dog"), images, images, trains_on_ignored)


def test_an_image_is_listed_in_detectron2s_form() -> None:
    assert dataset_dict(image(), 7, learnt=False) == {
        "file_name": "street.png",
        "image_id": 7,
        "height": 4,
        "width": 6,
        "annotations": [{"bbox": [0, 1, 2, 3], "bbox_mode": 0, "category_id": 1, "iscrowd": 0}],
    }
    assert len(dataset_dict(image(), 7, learnt=True)["annotations"]) == 2


def test_outlines_go_as_polygons_or_as_compressed_run_lengths() -> None:
    polygon: list[list[float]] = [[0.0, 0.0, 2.0, 0.0, 2.0, 2.0]]
    lengths = {"size": [4, 6], "counts": [20, 4]}
    given = image(segments=(polygon, lengths))
    first, second = dataset_dict(given, 0, learnt=True)["annotations"]
    assert first["segmentation"] == polygon
    assert isinstance(second["segmentation"]["counts"], (str, bytes))
    settings = context(Path())
    formats = [
        job_config(settings, SMALL, data(i), flip=False)["INPUT"]["MASK_FORMAT"]
        for i in (image(segments=(polygon, polygon)), given)
    ]
    assert formats == ["polygon", "bitmask"]


def test_images_with_nothing_to_learn_are_left_out_but_not_all() -> None:
    ignored = image(ignored=torch.tensor([True, True]))
    assert len(training_dicts(data(ignored, image()))) == 1
    assert len(training_dicts(data(ignored, image(), trains_on_ignored=True))) == 2
    with pytest.raises(UserError, match="none of the 1 training images"):
        training_dicts(data(ignored))


def test_the_job_is_the_tasks_in_detectron2s_terms(tmp_path: Path) -> None:
    design = Design(
        detector="mask_rcnn", image_size=(96, 128), rois_per_image=8, proposals=20, roi_size=7
    )
    content = job_config(context(tmp_path), design, data(*[image()] * 5), flip=True)
    model, solver = content["MODEL"], content["SOLVER"]
    assert model["MASK_ON"] and model["ROI_HEADS"] == {
        "NUM_CLASSES": 2,
        "BATCH_SIZE_PER_IMAGE": 8,
    }
    assert model["RPN"]["POST_NMS_TOPK_TRAIN"] == model["RPN"]["POST_NMS_TOPK_TEST"] == 20
    assert model["ANCHOR_GENERATOR"]["SIZES"] == [[32, 64, 128, 256, 512]]
    assert model["ROI_BOX_HEAD"] == {"POOLER_RESOLUTION": 7}
    assert content["INPUT"]["MIN_SIZE_TRAIN"] == [96, 128]
    assert content["INPUT"]["MIN_SIZE_TEST"] == 128
    assert content["INPUT"]["MAX_SIZE_TEST"] == 256
    assert content["INPUT"]["RANDOM_FLIP"] == "horizontal"
    # Five images make two whole batches an epoch; yacs takes no int for a float.
    assert solver["MAX_ITER"] == 4 and type(solver["BASE_LR"]) is float
    assert content["TEST"]["PRECISE_BN"]["NUM_ITER"] == 4
    own = job_config(context(tmp_path), SMALL, data(image()), flip=False)
    assert own["INPUT"]["MIN_SIZE_TRAIN"] == [0] and own["SOLVER"]["IMS_PER_BATCH"] == 1


@pytest.mark.parametrize(
    ("settings", "design", "what"),
    [
        ({"optimizer": "adamw"}, SMALL, "optimizer: adamw"),
        ({"accumulate": 2}, SMALL, "accumulate: 2"),
        ({"precision": "bfloat16"}, SMALL, "precision: bfloat16"),
        ({}, Design(head="two_fc"), "head: two_fc"),
    ],
)
def test_what_the_engine_has_not_is_refused(
    settings: dict[str, Any], design: Design, what: str
) -> None:
    check_job(context(Path()), SMALL)
    with pytest.raises(UserError, match=what):
        check_job(context(Path(), **settings), design)


def test_without_detectron2_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.delitem(sys.modules, "eval.detection.detectron2_heads", raising=False)
    with pytest.raises(UserError, match="cannot import detectron2") as told:
        run(
            context(tmp_path),
            cast(Start, None),
            data=data(image()),
            settings=DetectionSettings(SMALL),
        )
    assert "\n" not in str(told.value)


def resnet(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, num_classes=2).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "encoder.pth"
    write_network(path, resnet(), "student")
    return path


@pytest.mark.parametrize("damage", ["none", "lost", "other bits", "one more"])
def test_a_load_that_is_not_whole_is_seen(exported: Path, damage: str) -> None:
    tensors = convert_names(resnet().state_dict())
    state = {full_name(name): tensor for name, tensor in tensors.items()}
    state |= {name: torch.zeros(1) for name in expected_missing(mask=False)}
    state |= {
        "pixel_mean": torch.zeros(3),
        "backbone.stem.conv1.norm.num_batches_tracked": torch.zeros(()),
    }
    name = "roi_heads.res5.0.conv1.weight"
    if damage == "lost":
        del state[name]
    if damage == "other bits":
        state[name] = state[name] + 1e-6
    if damage == "one more":
        name = "roi_heads.res5.2.conv1.weight"
        state[name] = torch.zeros(1)
    if damage == "none":
        check_loaded(state, exported, mask=False)
        return
    with pytest.raises(UserError, match=name):
        check_loaded(state, exported, mask=False)


class Given:
    """In place of an origin: a network that is there already."""

    preprocessing = Preprocessing(64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __init__(self, name: str) -> None:
        self.name = name

    def network(self, *, weights: bool = True, seed: int = 0) -> nn.Module:
        return resnet(self.name)


def start(folder: Path, name: str = "resnet18") -> Start:
    folder.mkdir()
    origin = cast(Origin, Given(name))
    return Start("distilled", "kd", cast(Encoder, None), folder, origin, seed=0)


def built(folder: Path, name: str, design: Design, scenes: DetectionData) -> Any:
    detectron2_engine._require()
    return detectron2_engine._build(
        context(folder), start(folder / name, name), DetectionSettings(design), scenes
    )[0]


@needs_detectron2
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_detectron2_computes_the_students_maps(
    scenes: Write, tmp_path: Path, name: str, kind: Detector
) -> None:
    root = scenes()
    design = replace(SMALL, detector=kind)
    # Fails, too, where what is missing after loading is not exactly what should be.
    detector = built(tmp_path, name, design, coco(root, root=str(root))).eval()
    network, pixels = resnet(name), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        fourth = detector.backbone(pixels)["res4"]
        fifth = detector.roi_heads.res5[:-1](fourth)
        expected = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
        expected = network.layer3(network.layer2(network.layer1(expected)))
        assert torch.equal(fourth, expected)
        assert torch.equal(fifth, network.layer4(expected))


def trained(
    folder: Path, scenes: DetectionData, design: Design
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    metrics = run(
        context(folder.parent, lr=0.01),
        start(folder),
        data=scenes,
        settings=DetectionSettings(design, flip=True),
    )
    state = torch.load(folder / "detector.pth", weights_only=True)["model"]
    return metrics, state


@needs_detectron2
def test_a_training_is_repeatable_and_leaves_its_files(scenes: Write, tmp_path: Path) -> None:
    root = scenes()
    dataset = coco(root, root=str(root))
    before = torch.get_rng_state()
    first, second = (trained(tmp_path / name, dataset, SMALL) for name in ("a", "b"))
    assert torch.equal(before, torch.get_rng_state())
    assert {"ap_percent", "ap50_percent", "ap75_percent"} <= {*first[0]}
    assert first[0] == second[0]
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())
    lines = (tmp_path / "a" / "losses.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["total_loss"] > 0
    assert (tmp_path / "a" / "distilled.png").is_file()


@needs_detectron2
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_keeps_every_bit(scenes: Write, tmp_path: Path, frozen: bool) -> None:
    root = scenes()
    design = replace(SMALL, freeze_encoder=frozen)
    _, state = trained(tmp_path / "a", coco(root, root=str(root)), design)
    given = convert_names(resnet().state_dict())
    same = [torch.equal(state[full_name(name)], tensor) for name, tensor in given.items()]
    assert (
        all(same)
        if frozen
        else not any(
            kept for kept, name in zip(same, given, strict=True) if name.endswith("running_mean")
        )
    )


class Jittered(nn.Module):
    """A detector that finds the true boxes, moved by up to 3 pixels and unsure of some."""

    def __init__(self, images: tuple[AnnotatedImage, ...]) -> None:
        super().__init__()
        self.images = images

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from detectron2.structures import Boxes, Instances

        (given,) = batch
        true = self.images[given["image_id"]]
        generator = torch.Generator().manual_seed(given["image_id"])
        instances = Instances((true.height, true.width))
        moved = 6 * torch.rand(true.boxes.shape, generator=generator) - 3
        instances.pred_boxes = Boxes((true.boxes + moved).clamp(min=0, max=64))
        instances.pred_classes = true.labels - 1
        instances.scores = torch.rand(len(true.labels), generator=generator)
        return [{"instances": instances}]


@needs_detectron2
def test_detections_are_judged_as_detectron2s_own_evaluator_does(
    scenes: Write, tmp_path: Path
) -> None:
    detectron2_engine._require()
    from detectron2.config import get_cfg
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import COCOEvaluator

    root = scenes(test=12)
    images = coco(root, root=str(root)).test
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    detector = Jittered(images)
    ours = average_precision(images, detect(detector, cfg, images), 3)
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    numbers = {one["id"]: n for n, one in enumerate(content["categories"])}
    MetadataCatalog.get(str(root)).set(
        json_file=str(path), thing_dataset_id_to_contiguous_id=numbers
    )
    evaluator = COCOEvaluator(str(root), tasks=("bbox",), distributed=False)
    evaluator.reset()
    for number, listed in enumerate(content["images"]):
        output = detector([{"image_id": number}])
        evaluator.process([{"image_id": listed["id"]}], output)
    theirs = evaluator.evaluate()["bbox"]
    assert 5 < ours["ap_percent"] < 95
    for key, name in (("ap_percent", "AP"), ("ap50_percent", "AP50"), ("ap75_percent", "AP75")):
        assert ours[key] == pytest.approx(theirs[name], abs=1e-6)
