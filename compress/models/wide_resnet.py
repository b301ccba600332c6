"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis, BMVC 2016), as CRD uses them.

Depth 6n+4: a 3x3 stem of 16 channels, three stages of n pre-activation blocks (batch norm and ReLU
come before each convolution) at strides 1, 2, 2, a last batch norm and ReLU, global average
pooling, one linear layer. What the pooling reads is the output of `relu`; the stages' own outputs
`block1`, `block2`, `block3` are sums without activation. No dropout. The networks that the SimKD
paper calls WRN are others: `resnet38x2` and the like in `cifar_resnet.py`.

Parameter counts and names are those of the CRD repository (HobbitLong/RepDistiller), so that its
checkpoints load.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn


class PreactBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; (N, C_in, H, W) -> (N, C_out, H/stride, W/stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if stride != 1 or channels_in != channels_out:
            self.convShortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        # A shortcut that changes shape reads the activated input, the identity the raw one.
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        result: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active)))) + shortcut
        return result


class WideResNet(nn.Module):
    """(N, 3, H, W) normalised images -> (N, num_classes) logits; H and W multiples of 4."""

    # The papers' stage maps are the raw sums; before an activation they are the next norm's output.
    stage_paths: ClassVar = ("block1", "block2", "block3")
    stem_path: ClassVar = "conv1"
    pre_activation_paths: ClassVar[Mapping[str, str]] = {
        "block1": "block2.layer.0.relu1",
        "block2": "block3.layer.0.relu1",
        "block3": "relu",
    }

    def __init__(self, *, depth: int, width: int, num_classes: int) -> None:
        """Build the network.

        Args:
            depth: 6n+4.
            width: factor of the stages' channels 16, 32, 64; the stem keeps 16.
        """
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth is 6n+4 (10, 16, 22, ...), got {depth}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _stage(16, 16 * width, blocks, stride=1)
        self.block2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreactBlock(channels_in, channels_out, stride)
    rest = [PreactBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    # The level `layer` is there for the names alone.
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


WIDE_RESNETS: Mapping[str, Callable[..., nn.Module]] = {
    f"wrn_{depth}_{width}": partial(WideResNet, depth=depth, width=width)
    for depth, width in ((16, 1), (16, 2), (16, 4), (40, 1), (40, 2), (40, 4))
}
