"""The stem of the segmentation papers' ResNets: three 3x3 convolutions in place of one of 7x7.

They have stride 2, 1, 1 and 64, 64, 128 channels, so layer1 reads 128 where it read 64. The stem,
layer1's first convolution and the shortcut beside it are therefore new: weights of the usual
ImageNet training have no place for them, and all else is kept.
"""

from itertools import pairwise
from typing import Any

from torch import nn

_WIDTHS = (64, 64, 128)


def has_imagenet_stem(network: nn.Module) -> bool:
    """Return True if the network starts with one strided convolution and has layer1 to layer4."""
    stem = getattr(network, "conv1", None)
    return (
        isinstance(stem, nn.Conv2d)
        and stem.stride == (2, 2)
        and all(hasattr(network, name) for name in ("bn1", "layer1", "layer4"))
    )


def deepen(network: Any) -> None:
    """Give an ImageNet-style ResNet a deep stem, in place."""
    widths = (network.conv1.in_channels, *_WIDTHS)
    parts: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        parts += [] if index == 0 else [nn.BatchNorm2d(before), nn.ReLU()]
        stride = 2 if index == 0 else 1
        parts.append(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False))
    network.conv1 = nn.Sequential(*parts)
    network.bn1 = nn.BatchNorm2d(widths[-1])
    block = network.layer1[0]
    first = block.conv1
    block.conv1 = nn.Conv2d(
        widths[-1], first.out_channels, first.kernel_size, padding=first.padding, bias=False
    )
    # As torchvision's: the last convolution of the branch says how wide the block's output is.
    width = [m for n, m in block.named_children() if n.startswith("conv")][-1].out_channels
    block.downsample = nn.Sequential(
        nn.Conv2d(widths[-1], width, 1, bias=False), nn.BatchNorm2d(width)
    )
