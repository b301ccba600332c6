"""The C4 form on torchvision's ResNets: counts, sharing, freezing, and masks with a metric."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from compress.data import Preprocessing
from compress.errors import UserError
from compress.seeding import seeded
from eval.data import AnnotatedImage
from eval.data.masks import encode_masks
from eval.detection import Design, DetectorLoss, build_detector, detect, mask_average_precision
from eval.detection.c4 import C4Backbone, C4Stage

PREPROCESSING = Preprocessing(64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ENCODER: Any = SimpleNamespace(preprocessing=PREPROCESSING)
SMALL = {"rois_per_image": 4, "roi_size": 4, "proposals": 8, "anchor_sizes": (16, 32)}


def built(network: nn.Module, classes: int = 2, **design: Any) -> Any:
    return build_detector(Design(**design), ENCODER, network, classes=classes, seed=0)


def thin_resnet() -> torchvision.models.ResNet:
    """Of torchvision's class with one block a stage."""
    torch.manual_seed(0)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])


class WithAttention(torchvision.models.ResNet):
    """Somebody's own, whose forward could do more than run its parts."""


def batch(count: int = 2, objects: int = 1) -> Any:
    box, mask = torch.tensor([[8.0, 8, 40, 40]]), torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 8:40, 8:40] = 1
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": mask}
    torch.manual_seed(1)
    images = [torch.rand(3, 64, 64) for _ in range(count)]
    return images, [{k: v[:objects] for k, v in target.items()} for _ in range(count)]


# detectron2 has 33.06 and 35.16 million with 3 classes; torchvision regresses a box of the
# background class too. Each further class adds 5 outputs of 2048 weights, and one mask.
@pytest.mark.parametrize(
    ("detector", "classes", "count"),
    [
        ("faster_rcnn", 3, 33_068_191),
        ("faster_rcnn", 20, 33_242_356),
        ("mask_rcnn", 3, 35_166_627),
        ("mask_rcnn", 80, 35_975_281),
    ],
)
def test_parameters_of_resnet50_are_the_published_detectors(
    detector: str, classes: int, count: int
) -> None:
    found = built(torchvision.models.resnet50(), classes, detector=detector)
    assert sum(p.numel() for p in found.parameters()) == count


def test_trunk_and_stage_are_the_network_cut_in_two() -> None:
    network = thin_resnet().eval()
    images = torch.rand(2, 3, 64, 64)
    trunk = C4Backbone(network).eval()
    stage = C4Stage(network, trunk.out_channels, freeze=False).eval()
    stage.norm = nn.Identity()  # type: ignore[assignment]
    maps = trunk(images)
    assert maps.shape == (2, 256, 4, 4) and trunk.out_channels == 256
    pooled = stage(maps).mean((2, 3))
    torch.testing.assert_close(network.fc(pooled), network(images))
    names = {f"{n}": p for n, p in network.named_parameters()}
    assert all(p is names[n] for n, p in trunk.named_parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timms_resnets_have_the_form_of_torchvisions(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    networks = [torchvision.models.get_model(name), timm.create_model(name)]
    networks[1].load_state_dict(networks[0].state_dict())
    ours, theirs = (built(network, **SMALL).eval() for network in networks)
    assert {*ours.state_dict()} == {*theirs.state_dict()}
    theirs.load_state_dict(ours.state_dict())
    maps, crops = torch.rand(2, 3, 64, 64), torch.rand(2, ours.backbone.out_channels, 14, 14)
    assert torch.equal(ours.backbone(maps), theirs.backbone(maps))
    assert torch.equal(ours.roi_heads.box_head(crops), theirs.roi_heads.box_head(crops))
    chained = theirs.backbone(maps)
    torch.testing.assert_close(networks[1].layer4(chained), networks[1].forward_features(maps))
    assert Design().head_of(timm.create_model("resnet18d")) == "two_fc"  # a stem of three


def test_auto_takes_the_form_that_fits(encoder: Any) -> None:
    assert Design().head_of(thin_resnet()) == "c4" and Design().head_of(encoder) == "two_fc"
    assert Design(head="two_fc").head_of(thin_resnet()) == "two_fc"
    fine = thin_resnet()
    fine.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    assert Design().head_of(fine) == "two_fc"
    own = WithAttention(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    assert Design().head_of(own) == "two_fc"
    with pytest.raises(UserError, match=r"TinyEncoder; take head: two_fc"):
        build_detector(Design(head="c4"), encoder, encoder, classes=2, seed=0)


def test_every_parameter_learns_and_none_is_counted_twice() -> None:
    module = DetectorLoss(built(thin_resnet(), detector="mask_rcnn", **SMALL))
    names = [*module.state_dict()]
    assert len([n for n in names if n.endswith("layer4.0.conv1.weight")]) == 1
    with seeded(0, "test"):
        terms = module(batch())
    assert {"loss_mask", "loss_classifier", "loss_box_reg"} < {*terms}
    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in module.parameters())


def test_images_without_objects_train_and_batch_norm_is_never_given_nothing() -> None:
    module = DetectorLoss(built(thin_resnet(), detector="mask_rcnn", **SMALL))
    rows: list[int] = []
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    with seeded(0, "test"):
        terms = module(batch(objects=0))
    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert terms["loss_mask"] == 0 and min(rows) > 0
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    stage = C4Stage(thin_resnet(), 256, freeze=False)
    assert stage(torch.zeros(0, 256, 14, 14)).shape == (0, 512, 7, 7)


def test_frozen_encoder_keeps_trunk_and_last_stage() -> None:
    network = thin_resnet()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    images = torch.rand(2, 3, 64, 64)
    maps = C4Backbone(network).eval()(images).detach()
    module = DetectorLoss(built(network, freeze_encoder=True, detector="mask_rcnn", **SMALL))
    module.train()
    free = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, lr=0.1)
    with seeded(0, "test"):
        for _ in range(2):
            torch.stack([*module(batch()).values()]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert torch.equal(module.detector.backbone(images), maps)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert module.detector.roi_heads.box_head.stage.norm.training


def test_masks_are_judged_by_their_own_overlap_whatever_their_boxes_are() -> None:
    whole = torch.zeros(2, 64, 64, dtype=torch.bool)
    whole[0, :20, :30] = True
    whole[1, 40:50, 40:50] = True
    with_hole = whole.clone()
    with_hole[0, 5:15, 5:25] = False  # 400 of 600 pixels are left: IoU 2/3 in an equal box
    boxes, labels = torch.tensor([[0.0, 0, 30, 20], [40, 40, 50, 50]]), torch.tensor([1, 2])
    nothing_ignored, segments = torch.zeros(2, dtype=torch.bool), tuple(encode_masks(whole))
    truth = AnnotatedImage(Path("none"), 64, 64, boxes, labels, nothing_ignored, segments)
    detections = {"boxes": boxes, "labels": labels, "scores": torch.tensor([0.9, 0.8])}
    judged = partial(mask_average_precision, [truth], class_count=2)
    assert judged([detections | {"segments": encode_masks(whole)}]) == {
        "mask_ap_percent": pytest.approx(100),
        "mask_ap50_percent": pytest.approx(100),
        "mask_ap75_percent": pytest.approx(100),
    }
    # One class at 4 of 10 thresholds, the other at all.
    assert judged([detections | {"segments": encode_masks(with_hole)}]) == {
        "mask_ap_percent": pytest.approx(70),
        "mask_ap50_percent": pytest.approx(100),
        "mask_ap75_percent": pytest.approx(50),
    }


def test_detections_have_a_mask_each(tmp_path: Path) -> None:
    torchvision.utils.save_image(torch.rand(3, 64, 64), tmp_path / "a.png")
    empty = torch.zeros(0)
    image = AnnotatedImage(tmp_path / "a.png", 64, 64, empty.reshape(0, 4), empty, empty.bool())
    detector = built(thin_resnet(), detector="mask_rcnn", **SMALL)
    detector.roi_heads.score_thresh = 0.0
    (detections,) = detect(detector, (image, image)[:1], 1, torch.device("cpu"))
    assert len(detections["boxes"]) == len(detections["segments"]) > 0
    assert all(lengths["size"] == [64, 64] for lengths in detections["segments"])
