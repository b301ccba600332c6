"""A network of one's own, as `own_network.yaml` names it: any callable that takes num_classes."""

from torch import nn


def plain_cnn(*, num_classes: int, width: int = 32) -> nn.Module:
    """Three stages of two convolutions; (N, 3, H, W) -> (N, num_classes)."""

    def stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )

    return nn.Sequential(
        stage(3, width // 2, 1),
        stage(width // 2, width, 2),
        stage(width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )
