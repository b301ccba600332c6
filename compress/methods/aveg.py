"""AVEG: knowledge distillation from the averaged predictions of several teachers.

L = (1/m) sum_i T^2 mean_n KL(p_i || q), with p_i = softmax(z_i / T) of m teachers' logits z_i,
q = softmax(z_s / T) of the student's, temperature T.

The baseline that AE-KD (Du et al., NeurIPS 2020), CA-MKD (Zhang et al., ICASSP 2022: AVER) and
SimKD (Chen et al., CVPR 2022: AVEG) compare with. SimKD's text averages the predictions, the code
that it ran (Rorozhl/CA-MKD) the losses, as here: the gradient is the same, the value larger by
T^2 (H(mean_i p_i) - mean_i H(p_i)) with the mean entropies H. `kd` with several teachers is the
same term. Averaged logits would be another target.

Taps: logits of all. T = 4 as in the code. Weights: `simkd` is CE + AVEG, which SimKD's table has;
`crd` is 0.1 CE + 0.9 AVEG, as CRD's code weighs KD (its Figure 4 names no weights).

Paper (SimKD Table 6, best on test): three resnet32x4 -> shufflenetv2 on CIFAR-100 75.94 +- 0.20.
"""

from collections.abc import Sequence

from torch import Tensor

from compress.data.batch import Batch
from compress.methods.contract import MethodContext, Views, first, logits_of
from compress.methods.kd import KD, kd_loss
from compress.precision import in_float32


@in_float32
def aveg_loss(
    student_logits: Tensor, teacher_logits: Sequence[Tensor], temperature: float
) -> Tensor:
    """Mean over the teachers of `kd_loss`.

    Args:
        student_logits: z_s, (N, K).
        teacher_logits: z_i, (N, K) each.
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    terms = [kd_loss(student_logits, teacher, temperature) for teacher in teacher_logits]
    total: Tensor = sum(terms[1:], terms[0])
    return total / len(terms)


class AVEG(KD):
    """Soft targets of several teachers, each weighing the same."""

    def __init__(self, context: MethodContext, *, temperature: float = 4.0) -> None:
        super().__init__(context, temperature=temperature)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `aveg`."""
        targets = [logits_of(first(teacher)) for teacher in teachers]
        return {"aveg": aveg_loss(self.logits(first(student)), targets, self.temperature)}
