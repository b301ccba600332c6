"""ResNet-50 for 32x32 images (He et al., CVPR 2016), as CRD uses it.

The ImageNet network of bottleneck blocks (3, 4, 6, 3) with a 3x3 stem at stride 1 and without max
pooling: its four stages work at 32, 16, 8 and 4 pixels. The stride of a stage is in the 3x3
convolution. Parameter count and names are those of the CRD repository (ResNet50 in `resnetv2.py`),
so that its checkpoints load.
"""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

_EXPANSION = 4


class Bottleneck(nn.Module):
    """(N, C_in, H, W) -> (N, 4 * middle, H/stride, W/stride): 1x1, 3x3, 1x1 and a shortcut."""

    def __init__(self, channels_in: int, middle: int, stride: int) -> None:
        super().__init__()
        channels_out = middle * _EXPANSION
        self.conv1 = nn.Conv2d(channels_in, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        result: Tensor = self.relu3(self.bn3(self.conv3(out)) + shortcut)
        return result


class BottleneckResNet(nn.Module):
    """(N, 3, H, W) normalised images -> (N, num_classes) logits; H and W multiples of 8."""

    def __init__(self, *, blocks: tuple[int, int, int, int], num_classes: int) -> None:
        """Build the network.

        Args:
            blocks: how many each of the four stages has.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(256, 128, blocks[1], stride=2)
        self.layer3 = _stage(512, 256, blocks[2], stride=2)
        self.layer4 = _stage(1024, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(channels_in: int, middle: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, middle, stride)
    rest = [Bottleneck(middle * _EXPANSION, middle, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


BOTTLENECK_RESNETS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet50_cifar": partial(BottleneckResNet, blocks=(3, 4, 6, 3)),
}
