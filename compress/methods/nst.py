"""NST: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang, Wang; 2017).

L = sum over stages of the mean over N of [mean_jj' k(t_j, t_j') + mean_ii' k(s_i, s_i')
- 2 mean_ij k(s_i, t_j)], the squared maximum mean discrepancy of two sets of vectors per image:
s_1..s_Cs, a channel of the student's map (N, C_s, H, W) each, flattened to H*W numbers and divided
by its L2 norm, and t_1..t_Ct likewise of the teacher's (N, C_t, H, W). k(a, b) = (a . b)^2, the
polynomial kernel of degree 2 without a constant. The first mean is constant, so it moves no
student, but it makes L a distance: 0 for equal sets. Where the maps differ in size the larger is
average-pooled first. A channel that is all zero stays 0 (the norm is kept above 1e-12, which
changes no other value).

Taps: stage maps of both, the first with the first and so on from the fine end. Kernel and weight
50 are those of the CRD repository; the paper (arXiv 1707.01219) also tries a linear and a Gaussian
kernel, which are not here. The repository multiplies every channel pair at every position in
memory (N*C*C'*H*W numbers); here matrix products per image give the same values.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 73.30.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import pool_to_smaller, stage_pairs, unpaired_stages
from compress.methods.contract import LossWeights, Method, MethodContext, Views, published, stages
from compress.precision import in_float32


@in_float32
def nst_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels of one pair of maps.

    Args:
        student_map: (N, C_s, H, W).
        teacher_map: (N, C_t, H', W').

    Returns:
        A scalar in float32 or wider, mean over images; >= 0 but for rounding.
    """
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    student = normalize(student_map.flatten(2), dim=2)
    teacher = normalize(teacher_map.flatten(2), dim=2)
    within_teacher = _mean_kernel(teacher, teacher).detach()
    within_student, across = _mean_kernel(student, student), _mean_kernel(student, teacher)
    return within_teacher + within_student - 2 * across


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    """k of every two channels of (N, C, P) and (N, C', P), mean over N, C, C'."""
    count, pixels = first.shape[1] * second.shape[1], first.shape[2]
    if pixels * (first.shape[1] + second.shape[1]) >= count:
        return torch.bmm(first, second.mT).square().mean()
    # sum_ij (a_i . b_j)^2 = sum_pq (A^T A)_pq (B^T B)_pq: cheaper for many channels of few pixels.
    products = torch.bmm(first.mT, first) * torch.bmm(second.mT, second)
    return products.sum() / (len(first) * count)


class NST(Method):
    """Channel sets of every pair of stages."""

    dense = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(50)

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        stage_pairs(context)  # refuses networks that it cannot pair

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `nst`, summed over the pairs."""
        pairs = zip(stages(student), stages(teachers[0]), strict=False)
        return {"nst": torch.stack([nst_loss(s, t) for s, t in pairs]).sum()}

    def notes(self) -> list[str]:
        """Stages that find no partner."""
        return unpaired_stages(self.context)
