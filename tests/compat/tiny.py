"""A network of 1,000 parameters, whose model files are small enough to keep in the repository."""

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Two stages of one convolution each, global average pooling, a linear classifier."""

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.layer1 = _stage(3, width)
        self.layer2 = _stage(width, 2 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.avgpool(self.layer2(self.layer1(images)))
        logits: Tensor = self.fc(torch.flatten(features, 1))
        return logits


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def tiny(num_classes: int, *, width: int = 4) -> nn.Module:
    return Tiny(num_classes, width)
