"""SP: Similarity-Preserving Knowledge Distillation (Tung, Mori; ICCV 2019).

L = 1 / N^2 * sum_ij (G_t[i, j] - G_s[i, j])^2, with G the matrix X X^T (N, N) of the images of a
batch, each row divided by its L2 norm, and X (N, C*H*W) the flattened map of student or teacher.
Neither channels nor sizes need agree. Rows whose norm is below 1e-3 of the mean norm fade out, to 0
where the map of the image is all zero (`blocks.directions.fading`; the repositories divide by the
norm, or by 1e-12 where it is less, and have a gradient of up to 1e12). A batch of one has L = 0.

Taps: the deepest stage map of both; the paper sums over chosen layers, the CRD and SimKD
repositories take this one, which for MobileNetV2 and ShuffleNetV2 stands before the last 1x1
convolution. Weight 3000 as there. The term depends on the batch size: 64 in both repositories.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 72.94. SimKD Table 1, where
KD stands beside it, best on test: 74.29 +- 0.07.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from compress.data.batch import Batch
from compress.methods.blocks.directions import fading
from compress.methods.blocks.feature_maps import stage_pairs
from compress.methods.contract import LossWeights, Method, MethodContext, Views, published, stages
from compress.precision import in_float32


@in_float32
def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the row-normalised similarities within a batch.

    Args:
        student_map: (N, C_s, H, W), or any (N, ...).
        teacher_map: (N, C_t, H', W'), or any (N, ...).

    Returns:
        A scalar >= 0 in float32 or wider, mean over the N^2 entries.
    """
    return mse_loss(_similarities(student_map), _similarities(teacher_map))


def _similarities(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    products = flat @ flat.T
    norms: Tensor = torch.linalg.vector_norm(products, dim=1, keepdim=True)
    return normalize(products, dim=1) * fading(norms, norms.mean())


class SP(Method):
    """Similarities of the images of a batch at the deepest stage."""

    batch_coupled = True
    dense = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(3000)

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        stage_pairs(context)  # refuses several teachers and networks without stage maps

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `sp`."""
        return {"sp": sp_loss(stages(student)[-1], stages(teachers[0])[-1])}
