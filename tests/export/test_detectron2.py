"""`python -m export.detectron2`: names, bits, the config, and what is refused; no detectron2."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from torch import nn

from compress import model_files
from compress.data import Preprocessing
from compress.errors import UserError
from compress.models import build
from compress.taps import discover
from export.detectron2.command import (
    bare_name,
    convert_names,
    expected_missing,
    full_name,
    main,
    write_network,
)
from export.detectron2.config import SCHEDULES, ResNetForm, config, merge, resnet_form
from tests.export.networks import trained

IMAGENET = Preprocessing(64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("layer2.0.downsample.1.bias", "res3.0.shortcut.norm.bias"),
        ("layer3.5.bn3.weight", "res4.5.conv3.norm.weight"),
        ("layer4.2.conv2.weight", "res5.2.conv2.weight"),
        ("bn1.num_batches_tracked", None),
        ("fc.bias", None),
    ],
)
def test_a_tensor_has_its_name_in_detectron2(name: str, expected: str | None) -> None:
    assert bare_name(name) == expected


def listed(depth: int) -> set[str]:
    """Every name of detectron2's ResNet, as its modules are nested."""
    counts, convolutions = {18: ((2, 2, 2, 2), 2), 50: ((3, 4, 6, 3), 3)}[depth]
    layers = ["stem.conv1"]
    for stage, count in enumerate(counts, start=2):
        for block in range(count):
            layers += [f"res{stage}.{block}.conv{i}" for i in range(1, convolutions + 1)]
        if stage > 2 or depth == 50:  # ResNet18's first stage keeps its width
            layers.append(f"res{stage}.0.shortcut")
    return {
        f"{layer}.{kind}" for layer in layers for kind in ("weight", *(f"norm.{k}" for k in NORM))
    }


@pytest.mark.parametrize("depth", [18, 50])
def test_the_file_holds_every_tensor_under_its_name_bit_for_bit(tmp_path: Path, depth: int) -> None:
    network = torchvision.models.get_model(f"resnet{depth}", num_classes=3)
    network = trained(network, size=64)
    assert write_network(tmp_path / "model.pth", network, "student") == ResNetForm(depth, 1, 64)
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert content["matching_heuristics"] is True
    assert content["__author__"].startswith("compress ")
    assert set(content["model"]) == listed(depth)
    state = network.state_dict()
    assert torch.equal(content["model"]["stem.conv1.norm.running_var"], state["bn1.running_var"])
    last = f"conv{2 if depth == 18 else 3}"
    kept = content["model"][f"res5.1.{last}.norm.bias"]
    assert torch.equal(kept, state[f"layer4.1.bn{last[-1]}.bias"])
    values = sum(t.sum(dtype=torch.float64) for t in content["model"].values())
    own = [t for k, t in state.items() if not k.startswith("fc.") and "num_batches" not in k]
    torch.testing.assert_close(values, sum(t.sum(dtype=torch.float64) for t in own))


def test_the_last_stage_belongs_to_the_roi_head() -> None:
    assert full_name("res5.0.conv1.weight") == "roi_heads.res5.0.conv1.weight"
    assert full_name("res4.0.conv1.weight") == "backbone.res4.0.conv1.weight"
    assert full_name("stem.conv1.weight") == "backbone.stem.conv1.weight"


def test_missing_are_the_detectors_own_layers_and_no_other() -> None:
    rpn, box, mask = "proposal_generator.rpn_head", "roi_heads.box_predictor", "roi_heads.mask_head"
    layers = [f"{rpn}.conv", f"{rpn}.objectness_logits", f"{rpn}.anchor_deltas"]
    layers += [f"{box}.cls_score", f"{box}.bbox_pred"]
    faster = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    faster |= {f"roi_heads.res5.norm.{kind}" for kind in NORM}
    heads = {f"{mask}.{n}.{k}" for n in ("deconv", "predictor") for k in ("weight", "bias")}
    assert expected_missing(mask=False) == sorted(faster)
    assert expected_missing(mask=True) == sorted(faster | heads)


def test_the_config_says_what_torchvisions_weights_and_the_protocol_need() -> None:
    content = config(ResNetForm(50, 1, 64), IMAGENET, weights="model.pth")
    model = content["MODEL"]
    assert model["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert model["PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert content["INPUT"] == {"FORMAT": "RGB"}
    assert model["BACKBONE"]["FREEZE_AT"] == 0
    assert model["RESNETS"]["STRIDE_IN_1X1"] is False
    assert model["RESNETS"]["NORM"] == "naiveSyncBN"
    assert model["RESNETS"]["RES2_OUT_CHANNELS"] == 256
    assert model["RPN"] == {"PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TEST": 1000}
    assert model["ROI_HEADS"]["NAME"] == "Res5ROIHeadsExtraNorm"
    assert content["SOLVER"] == {"IMS_PER_BATCH": 16, "BASE_LR": 0.02}
    assert content["TEST"]["PRECISE_BN"]["ENABLED"] is True


def test_small_resnets_get_the_head_of_their_own_blocks() -> None:
    model = config(ResNetForm(34, 1, 64), IMAGENET, weights="model.pth")["MODEL"]
    assert model["ROI_HEADS"]["NAME"] == "BasicRes5ROIHeadsExtraNorm"
    assert model["RESNETS"]["RES2_OUT_CHANNELS"] == 64


def test_the_pixels_are_those_the_student_was_trained_with() -> None:
    own = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    model = config(ResNetForm(18, 1, 64), own, weights="model.pth")["MODEL"]
    assert model["PIXEL_MEAN"] == pytest.approx([127.5, 102, 76.5])
    assert model["PIXEL_STD"] == pytest.approx([51, 51, 25.5])


def test_schedules_are_mocos_and_leave_the_rest_of_the_config() -> None:
    base = config(ResNetForm(50, 1, 64), IMAGENET, weights="model.pth")
    voc, coco = (merge(base, SCHEDULES[name]) for name in ("voc_24k", "coco_2x"))
    assert voc["SOLVER"] == {
        "IMS_PER_BATCH": 16,
        "BASE_LR": 0.02,
        "STEPS": [18000, 22000],
        "MAX_ITER": 24000,
        "WARMUP_ITERS": 100,
    }
    assert len(voc["INPUT"]["MIN_SIZE_TRAIN"]) == 11
    assert voc["MODEL"]["ROI_HEADS"] == {"NAME": "Res5ROIHeadsExtraNorm", "NUM_CLASSES": 20}
    assert coco["MODEL"]["MASK_ON"]
    assert coco["INPUT"]["MIN_SIZE_TRAIN"] == [640, 672, 704, 736, 768, 800]
    assert coco["INPUT"]["FORMAT"] == "RGB"
    assert coco["SOLVER"]["MAX_ITER"] == 2 * SCHEDULES["coco_1x"]["SOLVER"]["MAX_ITER"] == 180000
    assert "STEPS" not in base["SOLVER"]


def changed_stem() -> nn.Module:
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return network


def no_pooling() -> nn.Module:
    network = torchvision.models.resnet18()
    network.maxpool = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: build("resnet8", num_classes=3), "is a .*ResNet, whose layers|is a CifarResNet"),
        (lambda: torchvision.models.mobilenet_v2(), "is a MobileNetV2, whose layers"),
        (changed_stem, "a 3x3 stem of stride 1"),
        (no_pooling, "another pooling"),
        (
            lambda: torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]),
            "dilated stages",
        ),
    ],
)
def test_another_network_is_refused_in_one_sentence(tmp_path: Path, make: Any, what: str) -> None:
    with pytest.raises(UserError, match=what) as told:
        write_network(tmp_path / "model.pth", make(), "RUN's student")
    assert "\n" not in str(told.value)
    assert "RUN's student" in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_wide_resnet_keeps_its_width() -> None:
    network = torchvision.models.wide_resnet50_2(num_classes=2)
    form = resnet_form(network, "student")
    resnets = config(form, IMAGENET, weights="w")["MODEL"]["RESNETS"]
    # detectron2's first bottleneck is NUM_GROUPS x WIDTH_PER_GROUP wide.
    width = resnets["NUM_GROUPS"] * resnets["WIDTH_PER_GROUP"]
    assert width == convert_names(network.state_dict())["res2.0.conv1.weight"].shape[0]


class Product(nn.Module):
    """A student below a projector and another classifier, as SimKD ships it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Conv2d(512, 4, 1)


def written(folder: Path, *, product: bool) -> nn.Module:
    """A student's files; returns its network."""
    folder.mkdir()
    network = trained(build("torchvision:resnet18", num_classes=3), size=64)
    description = model_files.describe(
        {"name": "torchvision:resnet18", "arguments": {}},
        discover(network, IMAGENET.input_shape, "student"),
        ("a", "b", "c"),
        IMAGENET,
        metrics={},
        fingerprint="0123abcd",
    )
    prefix = "encoder." if product else ""
    described = {**description, "method": None, "encoder_prefix": prefix}
    model_files.save(folder, "student", Product(network) if product else network, described)
    return network


@pytest.mark.parametrize("product", [False, True])
def test_the_command_writes_checkpoint_and_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], product: bool
) -> None:
    network = written(tmp_path / "bundle", product=product)
    out = tmp_path / "model.pth"
    command = [str(tmp_path / "bundle"), "--out", str(out), "--schedule", "voc_24k"]
    assert main(command) == 0
    model = torch.load(out, weights_only=True)["model"]
    expected = convert_names(network.state_dict())
    assert all(torch.equal(model[name], expected[name]) for name in listed(18))
    content = yaml.safe_load(out.with_suffix(".yaml").read_text())
    assert content["MODEL"]["WEIGHTS"] == "model.pth"
    assert content["MODEL"]["RESNETS"]["DEPTH"] == 18
    assert content["SOLVER"]["MAX_ITER"] == 24000
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in expected_missing(mask=True))


def test_files_are_replaced_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "bundle", product=False)
    (tmp_path / "model.yaml").write_text("mine")
    command = [str(tmp_path / "bundle"), "--out", str(tmp_path / "model.pth")]
    assert main(command) == 2
    assert "model.yaml exists" in capsys.readouterr().err
    assert (tmp_path / "model.yaml").read_text() == "mine"
    assert not (tmp_path / "model.pth").exists()
    assert main([*command, "--force"]) == 0
    assert main([command[0], "--out", str(tmp_path / "model.pkl")]) == 2
    assert ".pth" in capsys.readouterr().err
