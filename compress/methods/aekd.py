"""AE-KD: Adaptive Ensemble Knowledge Distillation in Gradient Space (Du et al., NeurIPS 2020).

L = sum_i a_i L_i, L_i = T^2 mean_n KL(p_i || q), with p_i = softmax(z_i / T) of m teachers' logits
z_i (N, K), q = softmax(z_s / T) of the student's, temperature T. The weights a are constants and,
in every step anew, those of the shortest mixture of the gradients of L_i by the student's logits:
min over a of |sum_i a_i g_i|^2, sum_i a_i = 1, 0 <= a_i <= C, with g_i = mean_n (q_n - p_i,n) (K,),
to which dL_i/dz_s, summed over the batch, is proportional. A teacher that all others disagree with
weighs little, but C (the tolerance) keeps the others from being outvoted: 1/m is AVEG, 1 is no
bound.

Taps: logits of all. T = 4, C = 0.6 and the division by lengths being off are the code's defaults
(AnTuo1998/AE-KD 68f490e); `normalise` is its `svm_norm`. Weights: `crd` is the code's CE + 0.9 L,
`simkd` CE + L, which SimKD ran (Rorozhl/CA-MKD's script). The authors solve the program as a
one-class SVM whose tolerance is above the size of its numbers: for N = 64 and K = 100 it can return
where it starts, (0.6, 0.4, 0) for (0.24, 0.39, 0.37). Here it is solved exactly, in float64, which
their solver also finds of gradients scaled up. In several processes, too, the weights are those of
the whole step's batch.

Paper (SimKD Table 6, best on test): three resnet32x4 -> shufflenetv2 on CIFAR-100 75.99 +- 0.18.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from compress.data.batch import Batch
from compress.distributed.collectives import all_reduce
from compress.methods.blocks.min_norm import min_norm_weights
from compress.methods.contract import LossWeights, Method, MethodContext, Views, first, logits_of
from compress.methods.kd import kd_loss
from compress.precision import in_float32


@in_float32
def aekd_loss(
    student_logits: Tensor, teacher_logits: Sequence[Tensor], weights: Tensor, temperature: float
) -> Tensor:
    """Sum over the teachers of a_i times `kd_loss`.

    Args:
        student_logits: z_s, (N, K).
        teacher_logits: z_i, (N, K) each, of m teachers.
        weights: a, (m,), constants.
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    terms = [kd_loss(student_logits, teacher, temperature) for teacher in teacher_logits]
    losses = torch.stack(terms)
    return (weights.to(losses.dtype) * losses).sum()


@torch.no_grad()
@in_float32
def logit_gradients(
    student_logits: Tensor, teacher_logits: Sequence[Tensor], temperature: float
) -> Tensor:
    """The gradients of L_i by z_s, summed over the batch, up to a common factor.

    Args:
        student_logits: z_s, (N, K).
        teacher_logits: z_i, (N, K) each, of m teachers.
        temperature: T > 0.

    Returns:
        sum_n (q_n - p_i,n), (m, K) in float64: their mean is a small difference of large numbers.
    """
    own = (student_logits.double() / temperature).softmax(1)
    known = [(teacher.double() / temperature).softmax(1) for teacher in teacher_logits]
    return torch.stack([(own - one).sum(0) for one in known])


def check_ensemble(temperature: float, tolerance: float) -> None:
    """Refuse, in words, what no temperature and no bound of weights can be."""
    if temperature <= 0:
        raise ValueError(f"temperature is above 0, got {temperature}")
    if not 0 < tolerance <= 1:
        raise ValueError(
            f"tolerance is the largest weight of a teacher, above 0 and at most 1, got {tolerance}"
        )


class AEKD(Method):
    """Soft targets of several teachers, weighted so that they agree."""

    is_soft_term = True
    batch_coupled = True  # the weights are of the batch
    gathers_rows = False
    student_taps: Sequence[str] = ("logits",)
    teacher_taps: Sequence[str] = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=1, kd=0, method=0.9),
        "simkd": LossWeights(ce=1, kd=0, method=1),
    }

    def __init__(
        self,
        context: MethodContext,
        *,
        temperature: float = 4.0,
        tolerance: float = 0.6,
        normalise: bool = False,
    ) -> None:
        super().__init__(context)
        check_ensemble(temperature, tolerance)
        self.temperature = temperature
        self.tolerance = tolerance
        self.normalise = normalise

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `aekd`."""
        return {"aekd": self.weighted_soft_loss(student, teachers)}

    def weighted_soft_loss(self, student: Views, teachers: Sequence[Views]) -> Tensor:
        """L of the own rows, with the weights of all processes' rows."""
        own = self.logits(first(student))
        known = [logits_of(first(teacher)) for teacher in teachers]
        gradients = all_reduce(logit_gradients(own, known, self.temperature))
        weights = min_norm_weights(gradients, self.tolerance, normalised=self.normalise)
        return aekd_loss(own, known, weights, self.temperature)
