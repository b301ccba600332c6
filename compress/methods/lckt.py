"""LCKT: local contrastive transfer of WCoRD (Chen et al.; CVPR 2021), by its primal form.

Wasserstein Contrastive Representation Distillation. L = sum_ij Pi_ij C_ij, of the N images of a
batch, with the cost C_ij = 1 - cos(A f_s(i), f_t(j)) of the pooled vectors of student and teacher,
A a trained linear layer to the teacher's width, and the transport plan Pi (N, N) whose rows and
columns sum to 1 / N each and that minimises sum_ij Pi_ij C_ij - e H(Pi): the entropic optimal
transport between the two sets of vectors. It asks that the sets agree, not which image is which.
Pi is found by Sinkhorn's iteration on logarithms and is a constant for the gradient, as the
envelope theorem allows at the optimum.

Taps: pooled vectors. No code is released. From the paper: transport between the features of a
batch, by Sinkhorn. Chosen here: the cosine cost; `regularisation` e = 0.05, with `iterations` = 50;
that the teacher's vectors stay as they are, since layers trained on both sides could make the cost
vanish by mapping all images to one point; and a weight of 1. Secondary sources name 0.05 for the
paper's, without saying whether the plan's mass is 1, as here, or N.

Paper (CoCoRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 74.65.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from compress.data.batch import Batch
from compress.methods.blocks.directions import unit_rows
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
def lckt_loss(
    student: Tensor, teacher: Tensor, *, regularisation: float = 0.05, iterations: int = 50
) -> Tensor:
    """L of vectors of one width.

    Args:
        student: A f_s, (N, C_t).
        teacher: f_t, (N, C_t).
        regularisation: e > 0.
        iterations: of Sinkhorn, at least 1.

    Returns:
        A scalar from 0 to 2 in float32 or wider.
    """
    cost = 1 - unit_rows(student) @ unit_rows(teacher).t()
    plan = transport_plan(cost.detach(), regularisation, iterations)
    return (plan * cost).sum()


def transport_plan(cost: Tensor, regularisation: float, iterations: int) -> Tensor:
    """Pi (N, N) for a cost (N, N); after the last iteration its columns sum to 1 / N exactly."""
    share = -math.log(len(cost))
    kernel = -cost / regularisation
    rows = columns = cost.new_zeros(len(cost))
    for _ in range(iterations):
        rows = share - (kernel + columns).logsumexp(1)
        columns = share - (kernel + rows[:, None]).logsumexp(0)
    return (kernel + rows[:, None] + columns).exp()


class LCKT(Method):
    """Optimal transport between the vectors of a batch."""

    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self, context: MethodContext, *, regularisation: float = 0.05, iterations: int = 50
    ) -> None:
        super().__init__(context)
        if regularisation <= 0:
            raise ValueError(f"regularisation is above 0, got {regularisation}")
        if iterations < 1:
            raise ValueError(f"iterations is at least 1, got {iterations}")
        self.regularisation, self.iterations = regularisation, iterations
        self.embedding = nn.Linear(*pooled_widths(context))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `lckt`."""
        own = self.embedding(pooled(student))
        loss = lckt_loss(
            own,
            pooled(teachers[0]),
            regularisation=self.regularisation,
            iterations=self.iterations,
        )
        return {"lckt": loss}
