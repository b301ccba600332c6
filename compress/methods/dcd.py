"""DCD: Discriminative and Consistent Representation Distillation (Giakoumoglou, Stathaki, 2024).

L = L_contrast + alpha L_consistency over a batch of N images (arXiv 2407.11802). With embeddings
v = g(f) / |g(f)| of the pooled features by a linear g (C -> 128) each of student and teacher, both
trained, the logits are l_ij = s v^S_i . v^T_j + b with s = min(e^tau, 10). L_contrast = -(1/N)
sum_i log softmax_j(l_ii): the teacher's embedding of the same image among those of the batch. With
p_ij = softmax of row i and q_ij = softmax of column j of l, L_consistency is a divergence from
one to the other, in two forms:

* `released` (giakoumoglou/distillers): (1/N) sum_ij q_ji (log q_ji - log p_ij), the columns
  transposed; 0 where l is symmetric. Its training script gives the optimiser the embeddings alone,
  so that tau = 1 and b = 0 never move: s = e.
* `text` (Algorithm 1 of the supplement): (1/N^2) sum_ij q_ij (log q_ij - log p_ij), neither
  transposed nor N times as large. tau and b learn.

`learned` takes the one of the form or says otherwise. What they do: b adds the same to all numbers
of every row and column, which no softmax sees, so its gradient is 0 and it stays 0. A higher s
lowers L_contrast once the right images are found, so tau rises; at s = 10 the clamp cuts its
gradient, and s stays 10, a temperature of 0.1, for the rest of the training. (Measured: 32 steps at
a learning rate of 0.05 took tau from 1 to 2.304, past ln 10 = 2.303, and b to 9e-9.) Neither of the
two decays: weight decay, as the released code would have it if it learned them, would pull tau back
below the clamp. The paper's "no trainable parameters" leaves out tau, b and the two embeddings.

Taps: pooled vectors. D = 128, tau = 1, b = 0, alpha = 0.5 and beta = 1 (`weights.method`) as in
text and code; lambda of L = CE + lambda KD + beta DCD is `weights.kd`: 0 for DCD, 1 for DCD + KD,
T = 4. The supplement (Figure 5, wrn_40_2 -> wrn_16_2) finds no difference between alpha from 0.01
to 5, beta best from 0.5 to 10, and lambda of 50 and above to end in collapse.

Paper (supplement, Table 7, mean of 3, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 74.23,
with KD 75.09.
Measured here (benchmarks/results/contrast_cpu.md; resnet20 -> resnet8, 20 classes, 4 epochs, 3
seeds): 43.40 (text's form 47.95), with KD 47.58; KD 43.35, CRD 36.13.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, normalize

from compress.data.batch import Batch
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    ParameterGroup,
    Views,
    pooled,
    pooled_widths,
    published,
)
from compress.precision import in_float32

LARGEST_SCALE = 10.0
Form = Literal["released", "text"]


@in_float32
def dcd_loss(
    student: Tensor,
    teacher: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    alpha: float = 0.5,
    form: Form = "released",
) -> Tensor:
    """L of a batch.

    Args:
        student: g(f) of the student, (N, D); normalised here.
        teacher: g(f) of the teacher, (N, D); normalised here.
        log_scale: tau, a scalar.
        bias: b, a scalar.

    Returns:
        A scalar in float32 or wider.
    """
    logits = logits_of_pairs(student, teacher, log_scale, bias)
    return dcd_contrast_loss(logits) + alpha * dcd_consistency_loss(logits, form)


@in_float32
def logits_of_pairs(student: Tensor, teacher: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """l (N, N): student rows, teacher columns; arguments as those of `dcd_loss`."""
    scale = log_scale.exp().clamp(max=LARGEST_SCALE)
    return normalize(student) @ normalize(teacher).t() * scale + bias


@in_float32
def dcd_contrast_loss(logits: Tensor) -> Tensor:
    """Cross entropy of logits (N, N) against their diagonal; a scalar >= 0."""
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device))


@in_float32
def dcd_consistency_loss(logits: Tensor, form: Form) -> Tensor:
    """Divergence between the softmax of columns and that of rows of logits (N, N).

    Of `released` a scalar >= 0: both are distributions over the same images. Of `text` it may be
    below 0, since it compares row i of q, which is no distribution, with that of p.
    """
    rows, columns = logits.log_softmax(1), logits.softmax(0)
    count = len(logits)
    if form == "released":
        return kl_div(rows, columns.t(), reduction="sum") / count
    return kl_div(rows, columns, reduction="sum") / count**2


class DCD(Method):
    """Two trained embeddings, contrasted within the batch."""

    batch_coupled = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)
    log_scale: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        context: MethodContext,
        *,
        form: Form = "released",
        alpha: float = 0.5,
        learned: bool | None = None,
        feature_width: int = 128,
    ) -> None:
        super().__init__(context)
        student, teacher = pooled_widths(context)
        if form not in ("released", "text"):
            raise ValueError(f"form is released or text, got {form}")
        if alpha < 0:
            raise ValueError(f"alpha is at least 0, got {alpha}")
        if feature_width < 1:
            raise ValueError(f"feature_width is at least 1, got {feature_width}")
        self.form: Form = form
        self.alpha = alpha
        self.student_embedding = nn.Linear(student, feature_width)
        self.teacher_embedding = nn.Linear(teacher, feature_width)
        learns = form == "text" if learned is None else learned
        self.log_scale = nn.Parameter(torch.tensor(1.0), requires_grad=learns)
        self.bias = nn.Parameter(torch.tensor(0.0), requires_grad=learns)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Temperature and bias do not decay."""
        return [ParameterGroup([self.log_scale, self.bias], weight_decay=0.0)]

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `contrast` and, unless alpha is 0, `consistency`."""
        own = self.student_embedding(pooled(student))
        known = self.teacher_embedding(pooled(teachers[0]))
        logits = logits_of_pairs(own, known, self.log_scale, self.bias)
        terms = {"contrast": dcd_contrast_loss(logits)}
        if self.alpha:
            terms["consistency"] = self.alpha * dcd_consistency_loss(logits, self.form)
        return terms
