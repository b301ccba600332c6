"""AT: Paying More Attention to Attention (Zagoruyko, Komodakis; ICLR 2017).

L = sum over stages l of the mean over N, H, W of (a(S_l) - a(T_l))^2, with a(F) = v / ||v||_2 and
v = mean over channels of |F|^p, one vector of H*W numbers per image. S_l (N, C_s, H, W) and T_l
(N, C_t, H, W) are the stage maps of student and teacher, p is `power`. Channels need not agree;
where the maps differ in size the larger is average-pooled first. a(F) of an image whose map is all
zero is 0 (the norm is kept above 1e-12, which changes no other value).

Taps: stage maps of both, the first with the first and so on from the fine end. p = 2 is the
paper's choice and the only one in the CRD and SimKD repositories. Weight 1000 as there: the paper
divides its 1000 by the number of elements, which the mean does here. The paper's equation 2 has
norms that are not squared; the authors' code has the squares, as here.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 73.44. SimKD Table 1, where
KD stands beside it, best on test: 75.07 +- 0.03.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import pool_to_smaller, stage_pairs, unpaired_stages
from compress.methods.contract import LossWeights, Method, MethodContext, Views, published, stages
from compress.precision import in_float32


@in_float32
def at_loss(student_map: Tensor, teacher_map: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of the attention of one pair of maps.

    Args:
        student_map: (N, C_s, H, W).
        teacher_map: (N, C_t, H', W').
        power: p >= 1.

    Returns:
        A scalar >= 0 in float32 or wider, mean over images and positions.
    """
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    return mse_loss(_attention(student_map, power), _attention(teacher_map, power))


def _attention(maps: Tensor, power: float) -> Tensor:
    return normalize(maps.abs().pow(power).mean(1).flatten(1), dim=1)


class AT(Method):
    """Attention of every pair of stages."""

    dense = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1000)

    def __init__(self, context: MethodContext, *, power: float = 2.0) -> None:
        super().__init__(context)
        if power < 1:
            raise ValueError(f"power is 1 or more, got {power}")
        stage_pairs(context)  # refuses networks that it cannot pair
        self.power = power

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `at`, summed over the pairs."""
        pairs = zip(stages(student), stages(teachers[0]), strict=False)
        return {"at": torch.stack([at_loss(s, t, self.power) for s, t in pairs]).sum()}

    def notes(self) -> list[str]:
        """Stages that find no partner."""
        return unpaired_stages(self.context)
