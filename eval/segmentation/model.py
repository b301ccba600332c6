"""Pyramid pooling head (PSPNet, Zhao et al., CVPR 2017) over an encoder's last map.

The map is averaged to 1, 2, 3 and 6 cells a side; each goes through a 1x1 convolution with norm
and ReLU, is enlarged to the map's size (bilinear, aligned corners) and joined to the map; a 3x3
convolution with norm and ReLU, channel dropout of 0.1 and a 1x1 convolution give the class logits,
enlarged to the image. Differs from PSPNet as used by Liu et al. (structured distillation, CVPR
2019): ReLU where theirs has an activation-free InPlaceABN, and no auxiliary loss, for which the
encoder would need a second tap.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.deployment import Encoder
from compress.randomness import seeded
from compress.ranks import summed

BINS = (1, 2, 3, 6)


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
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        parts = [features]
        for bins, branch in zip(BINS, self.branches, strict=True):
            pooled = branch(functional.adaptive_avg_pool2d(features, bins))
            parts.append(_enlarge(pooled, features.shape[-2:]))
        logits: Tensor = self.classifier(self.dropout(self.merge(torch.cat(parts, dim=1))))
        return logits


def _enlarge(maps: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)


class Segmenter(nn.Module):
    """Encoder and head: normalised images (N, 3, H, W) -> logits (N, classes, H, W)."""

    def __init__(self, encoder: Encoder, *, classes: int, width: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        with seeded(seed, "segmentation", "head"):
            self.head = PyramidPoolingHead(encoder.channels, classes, width)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return _enlarge(self.head(self.encoder(images)), images.shape[-2:])


class SegmentationLoss(nn.Module):
    """Mean cross-entropy over all pixels that are not void, for THE loop."""

    def __init__(self, segmenter: Segmenter, void: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.void = void

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """batch is normalised images (N, 3, H, W) and masks (N, H, W) of class indices.

        The term is this process's share: its sum over the pixels of all processes.
        """
        images, masks = batch
        loss = functional.cross_entropy(
            self.segmenter(images), masks, ignore_index=self.void, reduction="sum"
        )
        return {"ce": loss / summed((masks != self.void).sum())}
