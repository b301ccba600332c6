"""ShuffleNet for 32x32 images (Zhang et al., CVPR 2018), as CRD and SimKD use it.

A 1x1 stem of 24 channels at full resolution, three stages of 4, 8, 4 blocks with 240, 480, 960
channels (3 groups), each starting at stride 2, global average pooling, one linear layer. A block:
grouped 1x1 convolution to a quarter, channel shuffle, 3x3 depthwise, grouped 1x1. Against the
ImageNet network there is neither a stride nor a max pooling in the stem, and a ReLU follows the
depthwise convolution.

Parameter counts and names are those of the two repositories, so that their checkpoints load.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

_STEM, _STAGES, _BLOCKS, _GROUPS = 24, (240, 480, 960), (4, 8, 4), 3


class ChannelShuffle(nn.Module):
    """(N, C, H, W) -> (N, C, H, W): channel i of group g comes i-th among those of all groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        grouped = torch.unflatten(x, 1, (self.groups, -1))
        return grouped.transpose(1, 2).flatten(1, 2)


class ShuffleBlock(nn.Module):
    """(N, C_in, H, W) -> the sum with the shortcut; at stride 2 the two side by side."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        branch = channels_out - channels_in if stride == 2 else channels_out
        middle = branch // 4
        # The stem's 24 channels are too few for groups (section 3.2 of the paper).
        groups = 1 if channels_in == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(channels_in, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle1 = ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.shortcut = nn.AvgPool2d(3, 2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.shuffle1(self.relu1(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        out = out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], 1)
        result: Tensor = self.relu3(out)
        return result


class ShuffleNetV1(nn.Module):
    """(N, 3, H, W) normalised images -> (N, num_classes) logits; H and W multiples of 8."""

    stage_paths: ClassVar = ("layer1", "layer2", "layer3")  # without the stem, as in the papers

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU()
        self.layer1 = _stage(_STEM, _STAGES[0], _BLOCKS[0])
        self.layer2 = _stage(_STAGES[0], _STAGES[1], _BLOCKS[1])
        self.layer3 = _stage(_STAGES[1], _STAGES[2], _BLOCKS[2])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_STAGES[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(channels_in: int, channels_out: int, blocks: int) -> nn.Sequential:
    first = ShuffleBlock(channels_in, channels_out, 2)
    rest = [ShuffleBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


SHUFFLENETS_V1: Mapping[str, Callable[..., nn.Module]] = {"shufflenetv1": ShuffleNetV1}
