"""DKD: Decoupled Knowledge Distillation (Zhao et al.; CVPR 2022).

L = w(e) T^2 mean_n (alpha TCKD_n + beta NCKD_n). With p = softmax(z / T) of student or teacher
logits z and the label y of image n, TCKD = KL(b_t || b_s) compares how sure both are of the label,
b = (p_y, 1 - p_y), and NCKD = KL(o_t || o_s) what they say of the other classes, o = p_k / (1 -
p_y), k != y. KD is TCKD + (1 - p_y of the teacher) NCKD: the surer the teacher, the less it says.
w(e) = min(e / 20, 1) in epoch e, counted from 1, is the warm-up over `warm_up_epochs`.

Taps: logits of both, and labels. alpha = 1, beta = 8, T = 4 and 20 epochs of warm-up are the
authors' for CIFAR-100 (megvii-research/mdistiller), with beta = 6 where the teacher is vgg13 or
wrn_40_2 (not for shufflenetv1) and 2 where it is resnet56 or resnet110. On ImageNet they have T = 1
and no warm-up, beta = 0.5 for resnet34 -> resnet18 and 2 for resnet50 -> mobilenetv1. The term
takes the place of KD: both protocols are CE + DKD. Several teachers: the mean of their terms.

The code takes 1000 from the label's logit to leave it out of softmax, and the logarithm of
probabilities, which may be 0. Here the label is left out, and logarithms are of softmax as a whole:
the same values, and finite ones where the code has none. Of two classes NCKD is 0.

`standardize` is Logit Standardization (Sun et al.; CVPR 2024): z is replaced by (z - mean) / std
over its classes in both networks (`blocks.logits`). All protocols are then CE + 9 DKD, and
`temperature` is 2 unless given (4 otherwise), as sunshangquan/logit-standardization-KD has it for
resnet32x4 -> resnet8x4 and -> shufflenetv2, with beta = 8. Its other pairs mostly have beta = 2
with a weight of 9 to 18, some T = 3; the logs it links are named after them.

Paper (READMEs of the two repositories): resnet32x4 -> resnet8x4 on CIFAR-100 76.32, with
standardized logits 77.01.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from compress.data.batch import Batch
from compress.methods.blocks.logits import needs_of_standardized, standardized
from compress.methods.blocks.warm_up import warmed_up
from compress.methods.contract import LossWeights, Method, MethodContext, Needs, Views
from compress.precision import in_float32


@in_float32
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD), mean over the images.

    Args:
        student_logits: (N, K), K >= 2.
        teacher_logits: (N, K).
        labels: (N,).
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where the logits are equal.
    """
    (own, own_others), (known, known_others) = (
        _decoupled(logits / temperature, labels) for logits in (student_logits, teacher_logits)
    )
    target = kl_div(own, known, reduction="sum", log_target=True)
    others = kl_div(own_others, known_others, reduction="sum", log_target=True)
    return temperature**2 * (alpha * target + beta * others) / len(labels)


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """log b (N, 2), and log o (N, K) with the constant 0 in the place of the label."""
    at_label = labels[:, None]
    label, others = logits.gather(1, at_label), logits.scatter(1, at_label, float("-inf"))
    binary = torch.cat([label, others.logsumexp(1, keepdim=True)], dim=1)
    return binary.log_softmax(1), others.log_softmax(1).scatter(1, at_label, 0)


class DKD(Method):
    """Soft targets of the label and of the other classes, weighed apart."""

    is_soft_term = True
    reads_labels: ClassVar[bool] = True
    student_taps = ("logits",)
    teacher_taps = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = dict.fromkeys(
        ("crd", "simkd"), LossWeights(ce=1, kd=0, method=1)
    )

    def __init__(
        self,
        context: MethodContext,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float | None = None,
        warm_up_epochs: int = 20,
        standardize: bool = False,
    ) -> None:
        super().__init__(context)
        if min(alpha, beta) < 0 or alpha + beta == 0:
            raise ValueError(f"alpha and beta are at least 0 and not both 0, got {alpha}, {beta}")
        if temperature is not None and temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        if warm_up_epochs < 0:
            raise ValueError(f"warm_up_epochs is at least 0, got {warm_up_epochs}")
        self.alpha, self.beta = alpha, beta
        self.temperature = temperature or (2.0 if standardize else 4.0)
        self.warm_up_epochs = warm_up_epochs
        self.standardize = standardize

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`: standardized logits have weights of their own."""
        weights = LossWeights(ce=1, kd=0, method=9)
        return needs_of_standardized(super().needs(arguments), arguments, weights)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `dkd`."""

        def loss(own: Tensor, known: Tensor) -> Tensor:
            if self.standardize:
                own, known = standardized(own), standardized(known)
            return dkd_loss(
                own,
                known,
                batch.labels,
                temperature=self.temperature,
                alpha=self.alpha,
                beta=self.beta,
            )

        term = self.soft_loss(student, teachers, loss)
        return {"dkd": warmed_up(batch, self.warm_up_epochs) * term}
