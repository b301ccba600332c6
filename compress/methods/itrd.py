"""ITRD: Information Theoretic Representation Distillation (Miles et al.; BMVC 2022).

L = l_c L_corr + l_m L_mi, of the pooled vectors f_t (N, C_t) of the teacher and e (N, C_t) of the
student, which a trained linear layer brings to the teacher's width:

* L_corr = log2 sum_d |1 - c_d|^(2 a), with c_d = (1 / N) sum_n s_nd t_nd, where s and t are e and
  f_t less their mean over the batch and over its unbiased deviation, in each of the C_t dimensions:
  Renyi's entropy of order a of how far they are from a correlation of 1.
* L_mi = sum_ij (A_ij)^2 - sum_ij (B_ij)^2, with the cosines G of all pairs of images, A = G_s /
  trace G_s and B = G_s * G_t / trace(G_s * G_t), element by element: the student's entropy less the
  joint one, by a polynomial kernel. It is not 0 where the networks agree. Where the widths are
  equal, G_s is of the student's own vectors, otherwise of e.

Taps: pooled vectors of both. `correlation_weight` l_c = 2, `information_weight` l_m = 1 and `order`
a = 1.01 are those that the authors' README has for wrn_40_2 -> wrn_16_2 (roymiles/ITRD); its
command line begins with 0.05 for l_m and 1.5 for a. The tables' row "corr" has l_m = 0.

A dimension that is constant over the batch, as that of a dead unit, has c = 0 here, and a row of
zeros no cosine; both fade out below 1e-3 of the mean length (`blocks.directions`). There the code
has NaN. A batch of one has no correlation: L_corr = log2 C_t.

Paper (DCD supplement, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 76.19, corr alone 75.63.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

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
def itrd_correlation_loss(student: Tensor, teacher: Tensor, *, order: float = 1.01) -> Tensor:
    """L_corr.

    Args:
        student: e, (N, D).
        teacher: f_t, (N, D).
        order: a > 0.

    Returns:
        A scalar in float32 or wider, log2(D (1 / N)^(2 a)) where they are equal and alive.
    """
    own, known = (unit_rows((rows - rows.mean(0)).t()) for rows in (student, teacher))
    images = len(student)
    correlations = (own * known).sum(1) * ((images - 1) / images)
    return (1 - correlations).abs().pow(2 * order).sum().log2()


@in_float32
def itrd_information_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_mi.

    Args:
        student: (N, D_s).
        teacher: (N, D_t).

    Returns:
        A scalar in float32 or wider.
    """
    own, known = (unit @ unit.t() for unit in map(unit_rows, (student, teacher)))
    return _of_trace_1(own).square().sum() - _of_trace_1(own * known).square().sum()


def _of_trace_1(gram: Tensor) -> Tensor:
    # N where no row fades out; below 1 only where all of them do. The gradient of torch.trace would
    # wait for the device.
    return gram / gram.diagonal().sum().clamp(min=1)


def itrd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    correlation_weight: float = 2.0,
    information_weight: float = 1.0,
    order: float = 1.01,
) -> Tensor:
    """L of vectors (N, D) of one width."""
    correlation = itrd_correlation_loss(student, teacher, order=order)
    information = itrd_information_loss(student, teacher)
    return correlation_weight * correlation + information_weight * information


class ITRD(Method):
    """Correlation of each dimension, and information in the pairs of images."""

    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self,
        context: MethodContext,
        *,
        correlation_weight: float = 2.0,
        information_weight: float = 1.0,
        order: float = 1.01,
    ) -> None:
        super().__init__(context)
        weights = (correlation_weight, information_weight)
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"weights are at least 0 and not both 0, got {weights}")
        if order <= 0:
            raise ValueError(f"order is above 0, got {order}")
        student, teacher = pooled_widths(context)
        self.correlation_weight, self.information_weight = weights
        self.order = order
        self.embeds_pairs = student != teacher
        is_read = correlation_weight or self.embeds_pairs
        self.embedding = nn.Linear(student, teacher) if is_read else None

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `correlation` and `information`, without one of weight 0."""
        own, known, terms = pooled(student), pooled(teachers[0]), dict[str, Tensor]()
        embedded = own if self.embedding is None else self.embedding(own)
        if self.correlation_weight:
            loss = itrd_correlation_loss(embedded, known, order=self.order)
            terms["correlation"] = self.correlation_weight * loss
        if self.information_weight:
            loss = itrd_information_loss(embedded if self.embeds_pairs else own, known)
            terms["information"] = self.information_weight * loss
        return terms
