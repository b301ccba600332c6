"""AB: Knowledge Transfer via Distillation of Activation Boundaries (Heo et al., AAAI 2019).

L = 3/1000 * sum_l 2^(l-(L-1)) / N * sum over samples, channels and pixels of b(s, t), l = 0..L-1,
with b(s, t) = max(0, s + m)^2 where t <= 0 and max(0, m - s)^2 where t > 0, the teacher's value t
before the activation of stage l, the student's value s there after a connector, and the margin m:
the student is to agree in sign and to stay m away from 0. (The title ends: Formed by Hidden
Neurons.)

A connector is the identity where the maps are equal in channels and size, and otherwise
`MapRegressor` without ReLU; where sizes still differ the larger map is average-pooled. Taps: stage
maps before their activation, of both. m = 1, the layers' factors and the 3/1000 are those of the
CRD repository, which refuses unequal numbers of stages. (Connectors in the authors' own code are
1x1 convolutions without bias.)

The term is minimised before the main training, for 30 epochs at the student's learning rate: the
student's parameters that it reaches and the connectors learn. In the main training its published
weight is 0: CE alone, or with KD in protocol `simkd` (the authors' code has KD alone, T = 3). A
recipe that gives `weights.method` adds the very same term to the main training.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 73.17.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import (
    MapRegressor,
    pool_to_smaller,
    stage_pairs,
    unpaired_stages,
)
from compress.methods.contract import MethodContext, PretrainedMethod, Views, pre_activations
from compress.precision import in_float32
from compress.taps import MapSpec


@in_float32
def ab_loss(student: list[Tensor], teacher: list[Tensor], margin: float) -> Tensor:
    """Squared distance of the student's values from the teacher's side of the boundary.

    Args:
        student: L connected maps before activation, fine to coarse, each (N, C, H, W).
        teacher: L maps before activation, shaped as the student's.
        margin: m > 0.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where every student value has the teacher's sign and
        is at least m away from 0.
    """
    last = len(student) - 1
    total = student[0].new_zeros(())
    for layer, (own, target) in enumerate(zip(student, teacher, strict=True)):
        short = torch.where(target > 0, margin - own, own + margin).relu()
        total = total + 2.0 ** (layer - last) * short.square().sum() / len(own)
    return 3 / 1000 * total


class AB(PretrainedMethod):
    """Connectors, and a pre-training of the student with them."""

    dense = True
    student_taps = ("pre_activations",)
    teacher_taps = ("pre_activations",)

    def __init__(
        self, context: MethodContext, *, margin: float = 1.0, pretrain_epochs: int = 30
    ) -> None:
        super().__init__(context, pretrain_epochs)
        pairs = stage_pairs(context, kind="pre_activations")
        if not 0 < margin < math.inf:
            raise ValueError(f"margin is above 0, got {margin}")
        self.margin = margin
        self.connectors = nn.ModuleList(_connector(*pair) for pair in pairs)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `ab`."""
        maps = zip(self.connectors, pre_activations(student), strict=False)
        connected = [connector(own) for connector, own in maps]
        targets = pre_activations(teachers[0])
        aligned = [pool_to_smaller(*pair) for pair in zip(connected, targets, strict=False)]
        own, target = [pair[0] for pair in aligned], [pair[1] for pair in aligned]
        return {"ab": ab_loss(own, target, self.margin)}

    def notes(self) -> list[str]:
        """See `Method.notes`."""
        return unpaired_stages(self.context)


def _connector(student: MapSpec, teacher: MapSpec) -> nn.Module:
    own, target = ((m.channels, m.height, m.width) for m in (student, teacher))
    return nn.Identity() if own == target else MapRegressor(student, teacher, relu=False)
