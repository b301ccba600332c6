"""CC: Correlation Congruence for Knowledge Distillation (Peng et al., ICCV 2019).

L = 1 / (N-1) * sum over n < N and c of d[n,c] * d[n+1,c], with d = |E_s f_s - E_t f_t|, where f_s
and f_t are the pooled vectors of the N samples of a batch and E_s, E_t one linear layer each (with
bias) to 128 numbers. Neighbours in the batch are multiplied, so that the value depends on the order
of its samples.

Taps: pooled vectors of both, of any widths. Both layers are trained, the teacher's too, as in the
CRD repository, which has this form and its weight 0.02 from the paper's authors: so the term can
also fall because both layers shrink. The paper prints another form, the distance of the two
networks' kernel matrices (a Taylor series of a Gaussian). In a batch of one no sample has a
neighbour; its term is 0.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 72.97.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from compress.data.batch import Batch
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


@in_float32
def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Products of the two networks' absolute differences at neighbouring samples.

    Args:
        student: E_s f_s, (N, D).
        teacher: E_t f_t, (N, D).

    Returns:
        A scalar >= 0 in float32 or wider, mean over the N - 1 pairs of neighbours, 0 where N is 1.
    """
    differences = (student - teacher).abs()
    return (differences[:-1] * differences[1:]).sum() / max(len(differences) - 1, 1)


class CC(Method):
    """Two trained embeddings of the pooled vectors."""

    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(0.02)

    def __init__(self, context: MethodContext, *, feature_width: int = 128) -> None:
        super().__init__(context)
        student, teacher = pooled_widths(context)
        if feature_width < 1:
            raise ValueError(f"feature_width is at least 1, got {feature_width}")
        self.student_embedding = nn.Linear(student, feature_width)
        self.teacher_embedding = nn.Linear(teacher, feature_width)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `cc`."""
        own = self.student_embedding(pooled(student))
        return {"cc": cc_loss(own, self.teacher_embedding(pooled(teachers[0])))}
