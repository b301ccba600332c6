"""The C4 form of ResNets, torchvision's and timm's, as the MoCo and CoCoRD papers fine-tune them.

conv1 to layer3 are the backbone (stride 16); layer4 and one more batch norm run on each region's
14 x 14 crop, for its box by their spatial mean and for its mask as a map. All batch norms learn.

What differs from detectron2's form of it, whose numbers the papers print: RoIAlign's half-pixel
shift, smooth L1 with beta 1/9 in place of L1, box regressions of the background class, batch norms
that decay like all weights, a second pass of layer4 for the masks, no precise batch norm.
"""

from collections import OrderedDict
from itertools import islice
from typing import Any

from torch import Tensor, nn

from eval.detection.backbone import FrozenModule, probe_map

ANCHOR_SIZES: tuple[int, ...] = (32, 64, 128, 256, 512)
ANCHOR_RATIOS: tuple[float, ...] = (0.5, 1.0, 2.0)
ROI_SIZE = 14
# The parts of both libraries' ResNets in order; the activation has another name in each.
_PARTS = ["conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
_ACTIVATIONS = (["relu"], ["act1"])
_MODULES = ("torchvision.models.resnet", "timm.models.resnet")


class C4Backbone(nn.Sequential):
    """conv1 to layer3 of a ResNet, under their names: (N, 3, H, W) -> (N, C, H/16, W/16)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(OrderedDict(islice(network.named_children(), len(_PARTS))))
        self.out_channels = probe_map(self, side=64)[0]


class C4Stage(nn.Module):
    """layer4 and the extra norm: crops (n, C, 14, 14) -> maps (n, `width`, 7, 7)."""

    def __init__(self, network: Any, channels: int, *, freeze: bool) -> None:
        super().__init__()
        self.width = probe_map(network.layer4, channels, side=ROI_SIZE)[0]
        self.layer4 = FrozenModule(network.layer4) if freeze else network.layer4
        self.norm = nn.BatchNorm2d(self.width)

    def forward(self, crops: Tensor) -> Tensor:
        """Without crops a black one is sent through: several processes' batch norm needs a row."""
        padded = crops if len(crops) else crops.new_zeros(1, *crops.shape[1:])
        feature_map: Tensor = self.norm(self.layer4(padded))
        return feature_map[: len(crops)]


class C4BoxHead(nn.Module):
    """A region's features: the mean of its map, (n, C, 14, 14) -> (n, width)."""

    def __init__(self, stage: C4Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, crops: Tensor) -> Tensor:
        feature_map: Tensor = self.stage(crops)
        return feature_map.mean((2, 3))


class C4MaskHead(nn.Module):
    """A region's map, by the box head's own stage: (n, C, 14, 14) -> (n, width, 7, 7)."""

    def __init__(self, stage: C4Stage) -> None:
        super().__init__()
        self.stages = (stage,)  # in a tuple: its parameters belong to the box head

    def forward(self, crops: Tensor) -> Tensor:
        feature_map: Tensor = self.stages[0](crops)
        return feature_map


def has_form(network: nn.Module) -> bool:
    """Return True for a ResNet of torchvision's or timm's whose stem is one strided layer.

    Somebody's own class may do more in its forward than run these parts one after the other.
    """
    if type(network).__module__ not in _MODULES:
        return False
    names = [name for name, _ in islice(network.named_children(), len(_PARTS) + 1)]
    if [*names[:2], *names[3:]] != _PARTS or names[2:3] not in _ACTIVATIONS:
        return False
    stem = network.get_submodule("conv1")
    return isinstance(stem, nn.Conv2d) and stem.stride == (2, 2)


def c4_parts(network: nn.Module, *, freeze: bool) -> tuple[nn.Module, C4Stage]:
    """Backbone and last stage of a ResNet that `has_form`, sharing its parameters.

    freeze: neither of them learns; the extra norm does.
    """
    backbone = C4Backbone(network)
    stage = C4Stage(network, backbone.out_channels, freeze=freeze)
    if not freeze:
        return backbone, stage
    frozen = FrozenModule(backbone)
    frozen.out_channels = backbone.out_channels  # type: ignore[assignment]  # torchvision reads it
    return frozen, stage
