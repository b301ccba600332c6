"""ResNets for 32x32 images (He et al., CVPR 2016, section 4.2), with the widths of the papers.

Depth 6n+2: a 3x3 stem, three stages of n basic blocks at strides 1, 2, 2, global average pooling,
one linear layer. Shortcuts that change shape are 1x1 convolution + batch norm, as in the CRD and
SimKD repositories (the original uses zero padding), whose parameter counts this reproduces. Module
names are theirs and torchvision's, so that their checkpoints load.
"""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (N, C_in, H, W) -> (N, C_out, H/stride, W/stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu2(out + shortcut)
        return result


class CifarResNet(nn.Module):
    """(N, 3, H, W) normalised images -> (N, num_classes) logits; H and W multiples of 4."""

    def __init__(self, *, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        """Build the network.

        Args:
            depth: 6n+2.
            widths: channels of the stem and of the three stages.
        """
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is 6n+2 (8, 14, 20, ...), got {depth}")
        blocks = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, stages[0], blocks, stride=1)
        self.layer2 = _stage(stages[0], stages[1], blocks, stride=2)
        self.layer3 = _stage(stages[1], stages[2], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    rest = [BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _family(depth: int, widths: tuple[int, int, int, int]) -> Callable[..., nn.Module]:
    return partial(CifarResNet, depth=depth, widths=widths)


_THIN = (16, 16, 32, 64)
# The stem grows less than the stages; the papers' parameter counts tell.
_DOUBLE = (16, 32, 64, 128)
_WIDE = (32, 64, 128, 256)

# What the SimKD paper calls WRN-40-1, -40-2, -16-2, -40-4 are resnet38, resnet38x2, resnet14x2 and
# resnet38x4 here; the pre-activation networks of the CRD paper are in `wide_resnet.py`.
CIFAR_RESNETS: Mapping[str, Callable[..., nn.Module]] = {
    **{f"resnet{n}": _family(n, _THIN) for n in (8, 14, 20, 32, 38, 44, 56, 110, 116, 200)},
    **{f"resnet{n}x2": _family(n, _DOUBLE) for n in (14, 38, 110)},
    **{f"resnet{n}x4": _family(n, _WIDE) for n in (8, 14, 20, 26, 32, 38, 44, 56, 110)},
}
