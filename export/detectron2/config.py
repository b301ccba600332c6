"""The detectron2 config with which a C4 detector takes a torchvision ResNet.

Keys and defaults are detectron2's (version 0.6); values are the MoCo protocol's, the others are
left at detectron2's defaults, which that protocol keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from compress.data.images import Preprocessing
from compress.errors import UserError

# Blocks per stage -> depth, by kind of block.
_DEPTHS: Mapping[type[nn.Module], Mapping[tuple[int, ...], int]] = {
    BasicBlock: {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34},
    Bottleneck: {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152},
}

_VOC = {
    "MODEL": {"MASK_ON": False, "ROI_HEADS": {"NUM_CLASSES": 20}},
    "INPUT": {"MIN_SIZE_TRAIN": [*range(480, 801, 32)], "MIN_SIZE_TEST": 800},
    "DATASETS": {
        "TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
        "TEST": ["voc_2007_test"],
    },
    "SOLVER": {"STEPS": [18000, 22000], "MAX_ITER": 24000, "WARMUP_ITERS": 100},
}


def _coco(first: int, second: int, last: int) -> dict[str, Any]:
    return {
        "MODEL": {"MASK_ON": True},
        "INPUT": {"MIN_SIZE_TRAIN": [*range(640, 801, 32)], "MIN_SIZE_TEST": 800},
        "DATASETS": {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]},
        "SOLVER": {"STEPS": [first, second], "MAX_ITER": last},
    }


# MoCo's three detection jobs, for 16 images a step.
SCHEDULES: Mapping[str, dict[str, Any]] = {
    "voc_24k": _VOC,
    "coco_1x": _coco(60000, 80000, 90000),
    "coco_2x": _coco(120000, 160000, 180000),
}


@dataclass(frozen=True)
class ResNetForm:
    """A torchvision ResNet as detectron2 describes one."""

    depth: int
    groups: int
    width_per_group: int

    @property
    def basic(self) -> bool:
        """Two 3x3 convolutions a block (ResNet18 and 34) instead of the bottleneck."""
        return self.depth < 50

    @property
    def name(self) -> str:
        """`ResNet50`, with the width where it is not the usual one."""
        usual = (self.groups, self.width_per_group) == (1, 64)
        return f"ResNet{self.depth}" + ("" if usual else f" {self.groups}x{self.width_per_group}d")


def resnet_form(network: nn.Module, name: str) -> ResNetForm:
    """Read off depth and width with which detectron2 can rebuild a network called `name`.

    Raises:
        UserError: it is no torchvision ResNet, or one that was changed.
    """
    # A subclass may compute something else under the same names.
    if type(network) is not ResNet:
        raise UserError(
            f"{name} is a {type(network).__name__}, whose layers detectron2 has no names for; it "
            "takes torchvision's ResNets (torchvision:resnet18, resnet34, resnet50, resnet101)"
        )
    stages = [network.get_submodule(f"layer{i}") for i in range(1, 5)]
    blocks = [block for stage in stages for block in stage.children()]
    counts = tuple(len(list(stage.children())) for stage in stages)
    depth = _DEPTHS.get(type(blocks[0]), {}).get(counts)
    change = _change(network)
    if depth is None or change:
        what = change or f"stages of {counts} blocks"
        raise UserError(f"{name} is a ResNet with {what}, which detectron2 does not build")
    resnet: Any = network
    return ResNetForm(depth, resnet.groups, resnet.base_width)


def _change(network: ResNet) -> str:
    """The first difference from detectron2's ResNet that names and shapes do not show, or ''."""
    stem, pool = network.conv1, network.maxpool
    if (stem.kernel_size, stem.stride) != ((7, 7), (2, 2)):
        return f"a {stem.kernel_size[0]}x{stem.kernel_size[1]} stem of stride {stem.stride[0]}"
    if not isinstance(pool, nn.MaxPool2d) or (pool.kernel_size, pool.stride) != (3, 2):
        return "another pooling after its stem"
    if network.dilation != 1:
        return "dilated stages"
    if type(network.bn1) is not nn.BatchNorm2d:
        return f"{type(network.bn1).__name__} in place of batch norm"
    return ""


def config(form: ResNetForm, preprocessing: Preprocessing, *, weights: str) -> dict[str, Any]:
    """The model, input and solver of the MoCo protocol for one ResNet.

    Args:
        preprocessing: the student's; detectron2's pixels are 0 to 255.
        weights: value of MODEL.WEIGHTS.
    """
    head = "BasicRes5ROIHeadsExtraNorm" if form.basic else "Res5ROIHeadsExtraNorm"
    return {
        "VERSION": 2,
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "WEIGHTS": weights,
            "PIXEL_MEAN": [round(255 * value, 4) for value in preprocessing.mean],
            "PIXEL_STD": [round(255 * value, 4) for value in preprocessing.std],
            "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 0},
            "RESNETS": {
                "DEPTH": form.depth,
                "NORM": "naiveSyncBN",
                "STRIDE_IN_1X1": False,
                "NUM_GROUPS": form.groups,
                "WIDTH_PER_GROUP": form.width_per_group,
                "RES2_OUT_CHANNELS": 64 if form.basic else 256,
                "OUT_FEATURES": ["res4"],
            },
            "RPN": {"PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TEST": 1000},
            "ROI_HEADS": {"NAME": head},
        },
        "INPUT": {"FORMAT": "RGB"},
        "SOLVER": {"IMS_PER_BATCH": 16, "BASE_LR": 0.02},
        "TEST": {"PRECISE_BN": {"ENABLED": True}},
    }


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `changes` in the place of its own, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) else value
    return result
