"""Projectors of SimKD: student map -> teacher's width, the kinds of the paper's Table 5.

Each is a chain of convolutions without bias, each followed by batch norm and ReLU (Table S.1). With
C_s and C_t channels of student and teacher, m = C_t / r and batch norm counted, they have

    1x1              C_s C_t + 2 C_t
    1x1-1x1          m (C_s + C_t + 2) + 2 C_t
    1x1-dw3x3-1x1    m (C_s + C_t + 4) + 9 m + 2 C_t
    1x1-3x3-1x1      m (C_s + C_t + 4) + 9 m^2 + 2 C_t       (eq. 5)
    vector           m (C_s + C_t + 4) + m^2 + 2 C_t

parameters. `dw3x3` has a group per channel. `vector` is the three-layer transformation of the
pooled vector (N, C_s, 1, 1), where a convolution of one pixel is a linear layer. The paper names
the layers of Table 5 but not their widths; here all but the last have m channels, as in its Table
S.1, so `1x1` has no r.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from torch import nn

ProjectorKind = Literal["1x1", "1x1-1x1", "1x1-dw3x3-1x1", "1x1-3x3-1x1", "vector"]


def _pointwise(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 1, bias=False)


def _dense(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)


def _depthwise(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, groups=channels_in, bias=False)


_CONVOLUTIONS = {
    "1x1": (_pointwise,),
    "1x1-1x1": (_pointwise, _pointwise),
    "1x1-dw3x3-1x1": (_pointwise, _depthwise, _pointwise),
    "1x1-3x3-1x1": (_pointwise, _dense, _pointwise),
    "vector": (_pointwise, _pointwise, _pointwise),
}
# Kinds that read the map's spatial mean.
POOLED: Mapping[str, bool] = {kind: kind == "vector" for kind in _CONVOLUTIONS}


class Projector(nn.Sequential):
    """(N, C_s, H, W) -> (N, C_t, H, W), see the module's docstring."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        reduction: int,
        *,
        kind: ProjectorKind = "1x1-3x3-1x1",
        is_activated: bool = True,
    ) -> None:
        """Build the layers.

        Args:
            reduction: divides the width of all convolutions but the last.
            is_activated: a ReLU comes last, as the teacher's map has it; False for one that may be
                negative.
        """
        convolutions = _CONVOLUTIONS[kind]
        inner = [channels_out // reduction] * (len(convolutions) - 1)
        layers: list[nn.Module] = []
        for build, widths in zip(
            convolutions, pairwise([channels_in, *inner, channels_out]), strict=True
        ):
            layers += [build(*widths), nn.BatchNorm2d(widths[1]), nn.ReLU()]
        super().__init__(*(layers if is_activated else layers[:-1]))
