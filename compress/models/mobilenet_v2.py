"""MobileNetV2 for 32x32 images (Sandler et al., CVPR 2018), as CRD and SimKD use it.

A 3x3 stem at stride 2, seven stages of inverted residuals (1x1 expansion by T, 3x3 depthwise, 1x1
projection without activation), one 1x1 convolution to 1280 channels, global average pooling, one
linear layer. Against the ImageNet network the second stage keeps its resolution (32x32 images end
as 2x2), the first has its (useless) expansion by 1, widths are cut to integers rather than rounded
to multiples of 8, activations are ReLU rather than ReLU6, and there is no dropout.

`mobilenetv2` is the papers' MobileNetV2 (width 0.5), `mobilenetv2x2` SimKD's MobileNetV2x2 (width
1), both with T = 6. Parameter counts and names are those of the two repositories, so that their
checkpoints load.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

# Expansion by T or not, channels at width 1, blocks, stride of the first block.
_STAGES = (
    (False, 16, 1, 1),
    (True, 24, 2, 1),
    (True, 32, 3, 2),
    (True, 64, 4, 2),
    (True, 96, 3, 1),
    (True, 160, 3, 2),
    (True, 320, 1, 1),
)
_STEM, _LAST = 32, 1280


class InvertedResidual(nn.Module):
    """(N, C_in, H, W) -> (N, C_out, H/stride, W/stride); a sum where the shapes are equal."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = channels_in * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv(x) if self.has_shortcut else self.conv(x)
        return result


class MobileNetV2(nn.Module):
    """(N, 3, H, W) normalised images -> (N, num_classes) logits; H and W multiples of 16."""

    # The papers' last stage map is the one before the last 1x1 convolution.
    stage_paths: ClassVar = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")

    def __init__(self, *, width: float, expansion: int = 6, num_classes: int) -> None:
        """Build the network.

        Args:
            width: factor of every width but the last; above 1, of the last as well.
            expansion: T, the inner width of a block over its input's.
        """
        super().__init__()
        channels = int(_STEM * width)
        last = int(_LAST * max(1.0, width))
        self.conv1 = _activated(channels, nn.Conv2d(3, channels, 3, 2, padding=1, bias=False))
        stages = []
        for is_expanded, full, blocks, stride in _STAGES:
            stage = []
            for i in range(blocks):
                ratio = expansion if is_expanded else 1
                stage.append(
                    InvertedResidual(channels, int(full * width), 1 if i else stride, ratio)
                )
                channels = int(full * width)
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = _activated(last, nn.Conv2d(channels, last, 1, bias=False))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.conv1(x)))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def _activated(channels: int, convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


MOBILENETS_V2: Mapping[str, Callable[..., nn.Module]] = {
    "mobilenetv2": partial(MobileNetV2, width=0.5),
    "mobilenetv2x2": partial(MobileNetV2, width=1.0),
}
