"""VGG with batch norm for 32x32 images (Simonyan and Zisserman, ICLR 2015), as CRD uses it.

Five groups of 3x3 convolutions with 64, 128, 256, 512, 512 channels, each convolution followed by
batch norm and ReLU; 2x2 max pooling after the first three groups only, so that the last two work at
the same resolution; global average pooling; one linear layer in place of the original's three.
Convolutions keep their bias although a batch norm follows: the papers' counts have it.

Parameter counts and names are those of the CRD and SimKD repositories (`vgg8_bn` and so on there),
so that their checkpoints load. They pool a fourth time where the image is 64 pixels high; here the
size of an image changes no layer.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """(N, 3, H, W) normalised images -> (N, num_classes) logits; H and W multiples of 8."""

    stage_paths: ClassVar = ("relu1", "relu2", "relu3", "relu4")  # two of one size at the end

    def __init__(self, *, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        """Build the network.

        Args:
            convolutions: how many each of the five groups has.
        """
        super().__init__()
        # A group ends in batch norm: the ReLU after it is the tap, what it reads the map before.
        self.block0 = _group(3, _CHANNELS[0], convolutions[0])
        self.relu0 = nn.ReLU()
        self.pool0 = nn.MaxPool2d(2)
        self.block1 = _group(_CHANNELS[0], _CHANNELS[1], convolutions[1])
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.block2 = _group(_CHANNELS[1], _CHANNELS[2], convolutions[2])
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.block3 = _group(_CHANNELS[2], _CHANNELS[3], convolutions[3])
        self.relu3 = nn.ReLU()
        self.block4 = _group(_CHANNELS[3], _CHANNELS[4], convolutions[4])
        self.relu4 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_CHANNELS[4], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool0(self.relu0(self.block0(x)))
        x = self.pool1(self.relu1(self.block1(x)))
        x = self.pool2(self.relu2(self.block2(x)))
        x = self.relu4(self.block4(self.relu3(self.block3(x))))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def _group(channels_in: int, channels_out: int, convolutions: int) -> nn.Sequential:
    """Convolutions and batch norms with ReLUs between them; none after the last."""
    layers: list[nn.Module] = []
    for i in range(convolutions):
        if i:
            layers.append(nn.ReLU())
        layers.append(nn.Conv2d(channels_out if i else channels_in, channels_out, 3, padding=1))
        layers.append(nn.BatchNorm2d(channels_out))
    return nn.Sequential(*layers)


# The papers' numbers count the original's three linear layers: vgg8 has five convolutions.
VGGS: Mapping[str, Callable[..., nn.Module]] = {
    "vgg8": partial(VGG, convolutions=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, convolutions=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, convolutions=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, convolutions=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, convolutions=(2, 2, 4, 4, 4)),
}
