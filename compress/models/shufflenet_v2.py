"""ShuffleNetV2 for 32x32 images (Ma et al., ECCV 2018), as CRD and SimKD use it.

A 1x1 stem of 24 channels at full resolution, three stages of 4, 8, 4 blocks, each starting at
stride 2, one 1x1 convolution to 1024 channels, global average pooling, one linear layer. What the
pooling reads, `relu2`, is the map after that convolution. Against the ImageNet network the stem has
neither a stride nor a max pooling.

Parameter counts and names are those of the two repositories (ShuffleV2, ShuffleV2_1_5), so that
their checkpoints load.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.models.shufflenet_v1 import ChannelShuffle

_STEM, _BLOCKS = 24, (4, 8, 4)


class SplitBlock(nn.Module):
    """(N, C, H, W) -> (N, C, H, W): half of the channels pass through, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = x.chunk(2, dim=1)
        x = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        x = self.relu2(self.bn3(self.conv3(x)))
        result: Tensor = self.shuffle(torch.cat([kept, x], 1))
        return result


class DownBlock(nn.Module):
    """(N, C_in, H, W) -> (N, C_out, H/2, W/2): two branches with half of the channels each."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.conv1 = nn.Conv2d(
            channels_in, channels_in, 3, 2, padding=1, groups=channels_in, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.relu1(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu2(self.bn3(self.conv3(x)))))
        right = self.relu3(self.bn5(self.conv5(right)))
        result: Tensor = self.shuffle(torch.cat([left, right], 1))
        return result


class ShuffleNetV2(nn.Module):
    """(N, 3, H, W) normalised images -> (N, num_classes) logits; H and W multiples of 8."""

    stage_paths: ClassVar = ("layer1", "layer2", "layer3")  # without the stem, as in the papers

    def __init__(self, *, widths: tuple[int, int, int], last: int = 1024, num_classes: int) -> None:
        """Build the network.

        Args:
            widths: channels of the three stages, even.
            last: channels of the last 1x1 convolution.
        """
        super().__init__()
        if any(width % 2 for width in widths):
            raise ValueError(f"widths are even (a block splits its channels), got {widths}")
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(_STEM, widths[0], _BLOCKS[0])
        self.layer2 = _stage(widths[0], widths[1], _BLOCKS[1])
        self.layer3 = _stage(widths[1], widths[2], _BLOCKS[2])
        self.conv2 = nn.Conv2d(widths[2], last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(channels_in: int, channels_out: int, blocks: int) -> nn.Sequential:
    first = DownBlock(channels_in, channels_out)
    return nn.Sequential(first, *(SplitBlock(channels_out) for _ in range(blocks - 1)))


SHUFFLENETS_V2: Mapping[str, Callable[..., nn.Module]] = {
    "shufflenetv2": partial(ShuffleNetV2, widths=(116, 232, 464)),
    "shufflenetv2x1.5": partial(ShuffleNetV2, widths=(176, 352, 704)),
}
