"""PKT: Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, ECCV 2018).

L = mean_ij P_t[i,j] * log((P_t[i,j] + e) / (P_s[i,j] + e)), where, for either network,
P[i,j] = S[i,j] / sum_k S[i,k] with S[i,j] = (1 + cos(f_i, f_j)) / 2 and f_i the pooled vectors of
the N samples of a batch: how likely sample j is a neighbour of sample i. cos divides each vector by
its norm + e, e = 1e-7; sums and the mean take j = i along.

Taps: pooled vectors of both, of any widths. Form, e and the weight 30000 are those of the CRD
repository, which has them from the paper's author; the weight is large because the mean is over all
N^2 pairs. A vector of zeros has cosine 0 to all others; vectors whose norm is below 1e-3 of the
mean norm fade out towards it (`blocks.directions.fading`), where the repository's gradient grows to
1e7, and is NaN at 0. In a batch of one both P are 1 and the term is 0.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 73.64.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from compress.data.batch import Batch
from compress.methods.blocks.directions import fading
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    pooled,
    pooled_widths,
    published,
)
from compress.precision import in_float32

EPSILON = 1e-7


@in_float32
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the two networks' neighbourhoods within a batch, mean over its N^2 pairs.

    Args:
        student: (N, C_s).
        teacher: (N, C_t).

    Returns:
        A scalar in float32 or wider, 0 where the features are equal up to a rotation and a positive
        scale per sample.
    """
    q, p = _neighbours(student), _neighbours(teacher)
    return (p * ((p + EPSILON) / (q + EPSILON)).log()).mean()


def _neighbours(features: Tensor) -> Tensor:
    """P (N, N), rows sum to 1."""
    norms: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    unit = features / (norms + EPSILON) * fading(norms, norms.mean())
    similarities = (unit @ unit.T + 1) / 2
    return similarities / similarities.sum(1, keepdim=True)


class PKT(Method):
    """Cosine neighbourhoods of the pooled vectors in a batch."""

    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(30000)

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        pooled_widths(context)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `pkt`."""
        return {"pkt": pkt_loss(pooled(student), pooled(teachers[0]))}
