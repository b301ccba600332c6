"""OFD: A Comprehensive Overhaul of Feature Distillation (Heo et al.; ICCV 2019).

L = sum_l 2^(l - (L - 1)) (1 / N) sum over all elements of (c - t')^2 [c > t' or t' > 0], of the
maps before activation of the L last stages that both networks have, l = 0 .. L - 1 from the fine
end: t' = max(t, m) is the teacher's map t (N, C_t, H, W), each channel kept above its margin m
(C_t,), and c is the student's through a connector, a 1x1 convolution without bias and batch norm.
Where the teacher is not active, the student's value only has to be below.

m is the mean of a channel's negative values, for a normal distribution with the scale g and shift
b of the batch norm that makes the map: m = b - |g| phi(b / g) / Phi(-b / |g|), with the density
phi and the distribution Phi of the standard normal; where Phi is below 1e-3, m = -3 |g|. Of a
residual sum it is the batch norm of the block's main branch, as in the released code
(clovaai/overhaul-distillation). Teachers whose maps no batch norm makes are refused, ShuffleNetV2
and ConvNeXt among them. Those whose stages end without an activation, as MobileNetV2's do, are not,
though "not active" means little there; the authors have no such teacher.

Taps: maps before activation. Weight 1e-3 and the connectors' initial weights N(0, 2 / C_t) are the
authors'. Their teacher is in train mode, so that its batch norms read each batch; here it is in
eval mode as everywhere. Where maps differ in size the larger is average-pooled; where the numbers
of stages differ the deepest are paired, as in megvii-research/mdistiller.

Paper (DCD supplement, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 74.95.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.errors import UserError
from compress.methods.blocks.feature_maps import pool_to_smaller, stage_pairs, unpaired_finest
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    only_teacher,
    pre_activations,
    published,
)
from compress.precision import in_float32
from compress.taps import MapSpec, batch_norm_of

_RARE = 1e-3  # share of negative values below which their mean is not taken


@in_float32
def ofd_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], margins: Sequence[Tensor]
) -> Tensor:
    """L of connected maps.

    Args:
        student: c, L maps fine to coarse, each (N, C, H, W).
        teacher: t, shaped as the student's.
        margins: m, (C,) of each teacher map.

    Returns:
        A scalar >= 0 in float32 or wider, mean over the images.
    """
    last = len(student) - 1
    total = student[0].new_zeros(())
    for stage, (own, known, margin) in enumerate(zip(student, teacher, margins, strict=True)):
        target = torch.maximum(known, margin[:, None, None])
        apart = (own - target).square().where((own > target) | (target > 0), 0)
        total = total + 2.0 ** (stage - last) * apart.sum() / len(own)
    return total


def ofd_margins(scale: Tensor, shift: Tensor) -> Tensor:
    """m (C,) of a batch norm's scale and shift (C,): the mean of what is negative; at most 0."""
    deviation = scale.detach().double().abs().clamp(min=torch.finfo(torch.float64).tiny)
    mean = shift.detach().double()
    share = torch.special.ndtr(-mean / deviation)
    density = (-(mean / deviation).square() / 2).exp() / math.sqrt(2 * math.pi)
    usual = mean - deviation * density / share.clamp(min=_RARE)
    return torch.where(share > _RARE, usual, -3 * deviation).to(scale.dtype)


class OFD(Method):
    """Connectors to the teacher's maps before activation."""

    reads_network: ClassVar[bool] = True
    student_taps = ("pre_activations",)
    teacher_taps = ("pre_activations",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1e-3)

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        teacher = only_teacher(context)
        self.stages = len(stage_pairs(context, kind="pre_activations"))
        own = context.student.pre_activations[-self.stages :]
        known = teacher.taps.pre_activations[-self.stages :]
        self.connectors = nn.ModuleList(_connector(*pair) for pair in zip(own, known, strict=True))
        for stage, place in enumerate(known):
            self.register_buffer(f"margins{stage}", _margins_of(teacher.network, place))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `ofd`."""
        own = pre_activations(student)[-self.stages :]
        known = pre_activations(teachers[0])[-self.stages :]
        connected = [connector(one) for connector, one in zip(self.connectors, own, strict=True)]
        pairs = [pool_to_smaller(*pair) for pair in zip(connected, known, strict=True)]
        margins = [self.get_buffer(f"margins{stage}") for stage in range(self.stages)]
        return {"ofd": ofd_loss([s for s, _ in pairs], [t for _, t in pairs], margins)}

    def notes(self) -> list[str]:
        """Stages that find no partner."""
        return unpaired_finest(self.context)


def _connector(student: MapSpec, teacher: MapSpec) -> nn.Sequential:
    convolution = nn.Conv2d(student.channels, teacher.channels, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / teacher.channels))
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher.channels))


def _margins_of(network: nn.Module | None, place: MapSpec) -> Tensor:
    if network is None:
        raise ValueError("the method reads batch norms of the teacher, whose network is not here")
    try:
        norm = batch_norm_of(network, place)
    except UserError as error:
        raise ValueError(f"the method reads batch norms of the teacher, and {error}") from None
    if not norm.affine:
        return ofd_margins(torch.ones(place.channels), torch.zeros(place.channels))
    return ofd_margins(norm.weight.cpu(), norm.bias.cpu())
