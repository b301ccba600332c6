"""ReviewKD: Distilling Knowledge via Knowledge Review (Chen P. et al.; CVPR 2021).

L = sum over levels l of HCL(O_l, T_l). The levels are the stage maps, fine to coarse, and last the
pooled vector as a map of one pixel. The student's are fused from the last level to the first, so
that each one is reviewed with all that are deeper: with its map F_l (N, C_l, H, W) at level l,

    X_l = B(A_l F_l),   R_l = X_l z_l + up(R_(l+1)) u_l,   O_l = B(D_l R_l)

where A_l is a 1x1 convolution to M channels, D_l a 3x3 one to the teacher's, both without bias, and
B is batch norm. The attention maps z_l and u_l (N, 1, H, W) are the sigmoid of a 1x1 convolution of
X_l beside up(R_(l+1)), which is enlarged to the size of X_l by its nearest pixels. R_l is brought
to the teacher's size, by nearest pixels too, before D_l reads it and it goes on to level l - 1. At
the last level R = X. HCL, the hierarchical context loss of maps O and T, is the weighted mean of
the mean squared differences of O and T (weight 1) and of both average-pooled to 4x4, 2x2 and one
pixel (1/2, 1/4, 1/8): see `blocks.feature_maps.hierarchical_context_loss`.

Taps: the student's stage maps, the teacher's before activation, and the pooled vector of both. All
shapes are read off the networks; the authors' tables of them (dvlab-research/ReviewKD) have the
same for all their pairs on CIFAR-100. M is the width of the student's pooled vector, 512 at most
(`middle_channels`; 256 for MobileNet on ImageNet). A_l and D_l start as kaiming_uniform_ with
a = 1. As the authors' code pairs maps from the last level on and leaves out the stems, the finest
ones, so the finest stages of the network that has more of them are left out.

The term is multiplied by min(1, e / 20) in epoch e = 1, 2, ... (`warm_up_epochs`). The authors
count e from 0, have no warm-up on ImageNet, and take batches of 128 and a learning rate of 0.1
(0.02 for MobileNet and ShuffleNet). Weights in their scripts: 5, the default, for wrn_40_2 to
wrn_16_2, wrn_40_1 and shufflenetv1, and for resnet32x4 to resnet8x4 and shufflenetv1; 8 for
resnet32x4 to shufflenetv2; 0.6 for resnet56 to resnet20; 1 for resnet110 to resnet32. On ImageNet 1
for ResNet-34 to ResNet-18 and 8 for ResNet-50 to MobileNet.

Paper (DCD supplement, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 75.63.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import (
    hierarchical_context_loss,
    stage_pairs,
    unpaired_finest,
)
from compress.methods.blocks.warm_up import warmed_up
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    pooled,
    pooled_widths,
    pre_activations,
    published,
    stages,
)
from compress.precision import in_float32


@in_float32
def reviewkd_loss(fused: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The sum of the hierarchical context losses of all levels.

    Args:
        fused: O_l, each (N, C, H, W).
        teacher: T_l, shaped as the fused.

    Returns:
        A scalar >= 0 in float32 or wider, mean over the images; 0 where all maps are equal.
    """
    levels = zip(fused, teacher, strict=True)
    return torch.stack([hierarchical_context_loss(own, known) for own, known in levels]).sum()


class Fusion(nn.Module):
    """Attention-based fusion of one level: its map and the residual R_(l+1) -> O_l and R_l."""

    def __init__(
        self, channels_in: int, middle: int, channels_out: int, *, is_last: bool = False
    ) -> None:
        """`is_last`: of the last level, which has no residual to fuse with."""
        super().__init__()
        first = nn.Conv2d(channels_in, middle, 1, bias=False)
        second = nn.Conv2d(middle, channels_out, 3, padding=1, bias=False)
        for convolution in (first, second):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.narrow = nn.Sequential(first, nn.BatchNorm2d(middle))
        self.attention = None if is_last else nn.Conv2d(2 * middle, 2, 1)
        self.widen = nn.Sequential(second, nn.BatchNorm2d(channels_out))

    def forward(
        self, student_map: Tensor, residual: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Fuse one level.

        Args:
            student_map: F_l, (N, C_l, H, W).
            residual: R_(l+1), (N, M, h, w); None at the last level.
            size: height and width of the teacher's map.

        Returns:
            O_l (N, C_t, *size) and R_l (N, M, *size).
        """
        own: Tensor = self.narrow(student_map)
        if self.attention is not None and residual is not None:
            deeper = _nearest(residual, (own.shape[-2], own.shape[-1]))
            weights = self.attention(torch.cat([own, deeper], 1)).sigmoid()
            own = own * weights[:, :1] + deeper * weights[:, 1:]
        own = _nearest(own, size)
        return self.widen(own), own


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else interpolate(maps, size, mode="nearest")


class ReviewKD(Method):
    """A fusion for every level."""

    student_taps = ("stages", "pooled")
    teacher_taps = ("pre_activations", "pooled")
    protocols: ClassVar[Mapping[str, LossWeights]] = published(5)

    def __init__(
        self, context: MethodContext, *, middle_channels: int = 512, warm_up_epochs: int = 20
    ) -> None:
        super().__init__(context)
        vectors = pooled_widths(context)
        self.stages = len(stage_pairs(context))
        if middle_channels < 1:
            raise ValueError(f"middle_channels is at least 1, got {middle_channels}")
        if warm_up_epochs < 0:
            raise ValueError(f"warm_up_epochs is at least 0, got {warm_up_epochs}")
        self.warm_up_epochs = warm_up_epochs
        own, known = context.student.stages, context.teachers[0].taps.pre_activations
        maps = zip(own[-self.stages :], known[-self.stages :], strict=True)
        middle = min(middle_channels, vectors[0])
        self.fusions = nn.ModuleList(Fusion(s.channels, middle, t.channels) for s, t in maps)
        self.fusions.append(Fusion(vectors[0], middle, vectors[1], is_last=True))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `reviewkd`."""
        known = self._levels(pre_activations(teachers[0]), pooled(teachers[0]))
        fused = self.fuse(self._levels(stages(student), pooled(student)), known)
        factor = warmed_up(batch, self.warm_up_epochs)
        return {"reviewkd": factor * reviewkd_loss(fused, known)}

    def fuse(self, own: Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
        """The student's maps F_l -> O_l, in the sizes of the teacher's T_l, fine to coarse."""
        fused: list[Tensor] = []
        residual: Tensor | None = None
        for fusion, one, target in [*zip(self.fusions, own, known, strict=True)][::-1]:
            out, residual = fusion(one, residual, (target.shape[-2], target.shape[-1]))
            fused.append(out)
        return fused[::-1]

    def notes(self) -> list[str]:
        """Stages that find no partner."""
        return unpaired_finest(self.context)

    def _levels(self, maps: Sequence[Tensor], vector: Tensor) -> list[Tensor]:
        """The paired stage maps, and the pooled vector (N, D) as a map of one pixel."""
        return [*maps[-self.stages :], vector[:, :, None, None]]
