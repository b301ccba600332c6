"""RKD: Relational Knowledge Distillation (Park et al., CVPR 2019).

L = w_d * mean_ij h(D_s[i,j] - D_t[i,j]) + w_a * mean_ijk h(A_s[i,j,k] - A_t[i,j,k]), where, for
either network and pooled vectors f_i of the N samples of a batch, D[i,j] = |f_j - f_i| / m with m
the mean of the positive distances, A[i,j,k] = e_ij . e_ik with e_ij = (f_j - f_i) / |f_j - f_i|
(0 where i = j), and h(x) = x^2 / 2 for |x| < 1, |x| - 1/2 beyond. Means are over all N^2 and N^3
entries.

Taps: pooled vectors of both, of any widths. w_d = 25 and w_a = 50 are the paper's and those of the
CRD repository, whose weight of the whole term is 1. Its distances are at least 1e-6 between two
different samples, as here, so that they all count in m. The direction e of two samples that are
closer than 1e-3 m fades out here, to 0 where they are equal (`blocks.directions.fading`): the
repository divides by their distance, or by 1e-12 where it is less, so that its value jumps when two
samples meet and its gradient grows to 1e12. A batch of one has no pairs; its term is 0.

The angles are N^3 numbers. Up to four such float32 tensors live at once in a step (both networks'
angles, their difference, its gradient), so batches are at most 300: 4 * 4 * 300^3 bytes = 432 MB.
The unit vectors e take N^2 C numbers more for each network.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 71.90.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

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

CLOSEST = 1e-6  # the smallest distance of two samples
LARGEST_BATCH = 300
_ANGLES_MB = 4 * 4 * LARGEST_BATCH**3 // 10**6


@in_float32
def rkd_loss(
    student: Tensor, teacher: Tensor, *, distance_weight: float, angle_weight: float
) -> Tensor:
    """Difference of the two networks' distances and angles within a batch.

    Args:
        student: (N, C_s).
        teacher: (N, C_t).
        distance_weight: w_d.
        angle_weight: w_a.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where the features are equal up to a rotation, a shift
        and a scale.
    """
    directions_s, distances_s = _pairs(student)
    directions_t, distances_t = _pairs(teacher)
    distance = smooth_l1_loss(distances_s, distances_t)
    angle = smooth_l1_loss(directions_s @ directions_s.mT, directions_t @ directions_t.mT)
    return distance_weight * distance + angle_weight * angle


def _pairs(features: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors e_ij (N, N, C) from sample i to j; distances (N, N) relative to their mean.

    The mean is that of the positive distances, which are those off the diagonal.
    """
    steps = features[None] - features[:, None]
    lengths = torch.linalg.vector_norm(steps, dim=2)
    same = torch.eye(len(features), dtype=torch.bool, device=features.device)
    bounded = lengths.clamp(min=CLOSEST)
    distances = bounded.masked_fill(same, 0)
    # The lower bound is reached by a batch of one alone, whose mean has no terms.
    mean = (distances.sum() / max(len(features) * (len(features) - 1), 1)).clamp(min=CLOSEST)
    # A factor rather than a division, whose gradient is huge or NaN where samples coincide.
    directions = steps * (fading(lengths, mean) / bounded)[..., None]
    return directions, distances / mean


class RKD(Method):
    """Distances and angles of the pooled vectors in a batch."""

    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self, context: MethodContext, *, distance_weight: float = 25.0, angle_weight: float = 50.0
    ) -> None:
        super().__init__(context)
        pooled_widths(context)
        for name, weight in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is at least 0, got {weight}")
        if context.batch_size > LARGEST_BATCH:
            raise ValueError(
                f"the method compares batch_size^3 angles, so batch_size is at most "
                f"{LARGEST_BATCH} ({_ANGLES_MB} MB), got {context.batch_size}"
            )
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `rkd`."""
        loss = rkd_loss(
            pooled(student),
            pooled(teachers[0]),
            distance_weight=self.distance_weight,
            angle_weight=self.angle_weight,
        )
        return {"rkd": loss}
