"""FKD: Feature Kernel Distillation (He, Ozay; ICLR 2022).

L = l_k D + l_r R, of the pooled vectors f_s and f_t of the N images of a batch, with

* D = 1 / (N (N - 1)) sum over i != j of (r_s(i, j) - r_t(i, j))^2, r(i, j) = f(i) . f(j) /
  (|f(i)| |f(j)|): the feature kernels of the two networks, scaled to 1 on their diagonal, compared.
* R = mean_n |f_s(n)|^2, the feature regularisation, which keeps the student's vectors short.

Of several teachers r_t is the mean of their kernels. Both terms read no labels, and vectors of any
widths are compared.

Taps: pooled vectors. The authors released no code, and their weights could not be checked, so both
are ours: tune them. `kernel_weight` l_k = 100 weighs cosines about as the 3000 of SP does, which
divides each row by its norm; `norm_weight` l_r = 1e-3 keeps R well below the cross entropy. Others
have written R as 0.01 times the mean of |f_s|, which pulls as hard where |f_s| = 5. Vectors shorter
than 1e-3 of the mean fade out of r (`blocks.directions`). A batch of one has D = 0.

Not the FKD of "A Fast Knowledge Distillation Framework for Visual Recognition".

Paper (DCD supplement, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 75.57.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

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
def fkd_loss(student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """D.

    Args:
        student: f_s, (N, C_s).
        teachers: f_t, (N, C_t) each, one or more.

    Returns:
        A scalar >= 0 in float32 or wider, mean over the pairs of two images, 0 where N is 1.
    """
    known = torch.stack([_kernel(vectors) for vectors in teachers]).mean(0)
    apart = (_kernel(student) - known).square()
    images = len(student)
    own = torch.eye(images, dtype=torch.bool, device=student.device)
    return apart.masked_fill(own, 0).sum() / max(images * (images - 1), 1)


@in_float32
def fkd_norm_loss(student: Tensor) -> Tensor:
    """R of vectors (N, C_s): a scalar >= 0 in float32 or wider, mean over the images."""
    return student.square().sum(1).mean()


def _kernel(vectors: Tensor) -> Tensor:
    unit = unit_rows(vectors)
    return unit @ unit.t()


class FKD(Method):
    """Kernels of the pooled vectors, and the length of the student's."""

    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self, context: MethodContext, *, kernel_weight: float = 100.0, norm_weight: float = 1e-3
    ) -> None:
        super().__init__(context)
        if kernel_weight <= 0:
            raise ValueError(f"kernel_weight is above 0, got {kernel_weight}")
        if norm_weight < 0:
            raise ValueError(f"norm_weight is at least 0, got {norm_weight}")
        for one in context.for_each_teacher():
            pooled_widths(one)  # refuses networks without such vectors
        self.kernel_weight, self.norm_weight = kernel_weight, norm_weight

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `kernel` and, unless its weight is 0, `norm`."""
        own, known = pooled(student), [pooled(teacher) for teacher in teachers]
        terms = {"kernel": self.kernel_weight * fkd_loss(own, known)}
        if self.norm_weight:
            terms["norm"] = self.norm_weight * fkd_norm_loss(own)
        return terms
