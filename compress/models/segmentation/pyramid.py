"""Pyramid pooling head (PSPNet, Zhao et al., CVPR 2017) over an encoder's last map.

The map is averaged to 1, 2, 3 and 6 cells a side; each goes through a 1x1 convolution with norm
and ReLU, is enlarged to the map's size (bilinear, aligned corners) and joined to the map; a 3x3
convolution with norm and ReLU, channel dropout of 0.1 and a 1x1 convolution give the class logits.
An auxiliary head (3x3 convolution with norm and ReLU, dropout, 1x1) on the map before the last
stage learns the same masks with weight 0.4. Differs from PSPNet as used by Liu et al. (structured
distillation, CVPR 2019) in this: ReLU where theirs has an activation-free InPlaceABN, and the max
pooling of the student where theirs rounds the map's size up.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.models.segmentation.pooling import adaptive_average, enlarge_cells

BINS = (1, 2, 3, 6)
AUXILIARY_WEIGHT = 0.4
_DROPOUT = 0.1
_LEAST_WIDTH = 64


def usual_width(channels: int) -> int:
    """Channels of each branch where nobody says: a quarter of the encoder's, 64 or more."""
    return max(_LEAST_WIDTH, channels // 4)


def enlarge(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps (N, C, h, w) -> (N, C, *size), bilinear with aligned corners."""
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def _convolution(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class PyramidPoolingHead(nn.Module):
    """(N, channels, h, w) -> logits (N, classes, h, w); `width` channels in each branch."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_convolution(channels, width, 1) for _ in BINS)
        self.merge = _convolution(channels + width * len(BINS), width, 3)
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        parts = [features]
        for bins, branch in zip(BINS, self.branches, strict=True):
            pooled = branch(adaptive_average(features, bins))
            parts.append(enlarge_cells(pooled, features.shape[-2:]))
        logits: Tensor = self.classifier(self.dropout(self.merge(torch.cat(parts, dim=1))))
        return logits


def auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    """(N, channels, h, w) -> logits (N, classes, h, w), by way of half the channels."""
    width = channels // 2
    return nn.Sequential(
        *_convolution(channels, width, 3), nn.Dropout2d(_DROPOUT), nn.Conv2d(width, classes, 1)
    )
