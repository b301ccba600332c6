"""Pyramid pooling head (PSPNet, Zhao et al., CVPR 2017) over an encoder's last map.

The map is averaged to 1, 2, 3 and 6 cells a side; each goes through a 1x1 convolution with norm
and ReLU, is enlarged to the map's size (bilinear, aligned corners) and joined to the map; a 3x3
convolution with norm and ReLU, channel dropout of 0.1 and a 1x1 convolution give the class logits,
enlarged to the image. An auxiliary head (3x3 convolution with norm and ReLU, dropout, 1x1) on the
map before the last stage learns the same masks with weight 0.4. Differs from PSPNet as used by Liu
et al. (structured distillation, CVPR 2019) in this: ReLU where theirs has an activation-free
InPlaceABN, and the max pooling of the student where theirs rounds the map's size up.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.distributed.collectives import all_reduce
from compress.model_files.artifacts import Encoder
from compress.seeding import seeded
from compress.taps import MapSpec
from eval.segmentation.backbone import SegmentationBackbone

BINS = (1, 2, 3, 6)
AUXILIARY_WEIGHT = 0.4
_DROPOUT = 0.1
_LEAST_WIDTH = 64


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
            pooled = branch(functional.adaptive_avg_pool2d(features, bins))
            parts.append(_enlarge(pooled, features.shape[-2:]))
        logits: Tensor = self.classifier(self.dropout(self.merge(torch.cat(parts, dim=1))))
        return logits


def auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    """(N, channels, h, w) -> logits (N, classes, h, w), by way of half the channels."""
    width = channels // 2
    return nn.Sequential(
        *_convolution(channels, width, 3), nn.Dropout2d(_DROPOUT), nn.Conv2d(width, classes, 1)
    )


def _enlarge(maps: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)


class Segmenter(nn.Module):
    """Encoder and heads: normalised images (N, 3, H, W) -> logits (N, classes, H, W).

    Args:
        width: channels of each branch; None: a quarter of the encoder's, 64 or more.
        auxiliary: the map that the auxiliary head reads; None: there is no such head.
        frozen: the encoder does not learn, see `SegmentationBackbone`.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int,
        seed: int,
        width: int | None = None,
        auxiliary: MapSpec | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.preprocessing = encoder.preprocessing
        self.trunk = SegmentationBackbone(encoder, auxiliary, frozen=frozen)
        self.width = max(_LEAST_WIDTH, encoder.channels // 4) if width is None else width
        with seeded(seed, "segmentation", "head"):
            self.head = PyramidPoolingHead(encoder.channels, classes, self.width)
        self.auxiliary: nn.Sequential | None = None
        if auxiliary is not None:
            with seeded(seed, "segmentation", "auxiliary head"):
                self.auxiliary = auxiliary_head(auxiliary.channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return _enlarge(self.head(self.trunk(images)[0]), images.shape[-2:])

    def both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits, and those of the auxiliary head (None without one), at the image's size."""
        last, second = self.trunk(images)
        size = images.shape[-2:]
        logits = _enlarge(self.head(last), size)
        if self.auxiliary is None or second is None:
            return logits, None
        return logits, _enlarge(self.auxiliary(second), size)


class SegmentationLoss(nn.Module):
    """Mean cross-entropy over all pixels but those of `ignore_index`, for THE loop.

    The auxiliary head's counts `weight` times.
    """

    def __init__(
        self, segmenter: Segmenter, ignore_index: int, weight: float = AUXILIARY_WEIGHT
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.ignore_index = ignore_index
        self.weight = weight

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """batch is normalised images (N, 3, H, W) and masks (N, H, W) of class indices.

        A term is this process's share: its sum over the pixels of all processes. A batch
        without any class has the loss 0.
        """
        images, masks = batch
        count = all_reduce((masks != self.ignore_index).sum()).clamp(min=1)

        def mean(logits: Tensor) -> Tensor:
            return self._sum_loss(logits, masks) / count

        logits, second = self.segmenter.both(images)
        terms = {"ce": mean(logits)}
        if second is not None:
            terms["auxiliary"] = self.weight * mean(second)
        return terms

    def _sum_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits, masks, ignore_index=self.ignore_index, reduction="sum"
        )
