"""SP: Similarity-Preserving Knowledge Distillation (Tung, Mori; ICCV 2019).

L = 1 / N^2 * sum_ij (G_t[i, j] - G_s[i, j])^2, with G the matrix X X^T (N, N) of the images of a
batch, each row divided by its L2 norm, and X (N, C*H*W) the flattened map of student or teacher.
Neither channels nor sizes need agree. The row of an image whose map is all zero stays 0 (the norm
is kept above 1e-12, which changes no other value). A batch of one has L = 0.

Taps: the deepest stage map of both; the paper sums over chosen layers, the CRD and SimKD
repositories take this one, which for MobileNetV2 and ShuffleNetV2 stands before the last 1x1
convolution. Weight 3000 as there. The term depends on the batch size: 64 in both repositories.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 72.94. SimKD Table 1, where
KD stands beside it, best on test: 74.29 +- 0.07.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from compress.data.batch import Batch
from compress.methods.contract import Context, Method, Terms, Views, in_float32, published, stages
from compress.methods.maps import stage_pairs


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
    return normalize(flat @ flat.T, dim=1)


class SP(Method):
    """Similarities of the images of a batch at the deepest stage."""

    batch_coupled = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, Terms]] = published(3000)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        stage_pairs(context, "sp")  # refuses several teachers and networks without stage maps

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `sp`."""
        return {"sp": sp_loss(stages(student)[-1], stages(teachers[0])[-1])}
