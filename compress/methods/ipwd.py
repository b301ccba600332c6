"""IPWD: Respecting Transfer Gap in Knowledge Distillation (Niu et al.; NeurIPS 2022).

L = T^2 mean_n w_n KL(p_n || q_n) + CE(h), with the softened predictions p and q of teacher and
student of KD and a weight for each image, by inverse probability weighting: images that the
student learns from labels alone but not from the teacher are rare in what the teacher passes on,
and count more. w_n = v_n / mean v, v_n = 1 + c_n / s_n, with the cross entropies of the label y
under the student's own prediction (s_n), which imitates the teacher, and under that of a second
classifier h (c_n), which learns from labels alone. Both are of logits that are standardised over
the classes (`blocks.logits`), and w is a constant in each step.

Taps: logits and the student's pooled vector; labels. No code is released, and the paper was at
hand in summaries alone. From them: w, standardised logits and a classifier of its own for c, both
of which are called essential. Chosen here: h is a linear layer on the student's pooled vector as a
constant, so that it moves nothing but itself; w has mean 1 over the batch; T = 4; and the weights
of KD, 0.1 CE + 0.9 IPWD in the CRD protocol and 1 + 1 in SimKD's. Standardised logits bound w: of
K classes no s_n is below log(1 + (K - 1) exp(-K / sqrt(K - 1))). Several teachers: the mean of
their terms. A batch of one has w = 1.

Paper (DCD supplement, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 76.03.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compress.data.batch import Batch
from compress.methods.blocks.heads import label_loss
from compress.methods.blocks.logits import standardized
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    first,
    logits_of,
    pooled,
)
from compress.precision import in_float32


@in_float32
def ipwd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    temperature: float = 4.0,
) -> Tensor:
    """T^2 w KL, mean over the images.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K).
        weights: w, (N,).
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where the logits are equal.
    """
    log_q = log_softmax(student_logits / temperature, dim=1)
    log_p = log_softmax(teacher_logits / temperature, dim=1)
    divergences = kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * (weights * divergences).mean()


@torch.no_grad()
@in_float32
def ipwd_weights(student_logits: Tensor, labelled_logits: Tensor, labels: Tensor) -> Tensor:
    """w.

    Args:
        student_logits: of the classifier that imitates the teacher, (N, K).
        labelled_logits: of the one that learns from labels alone, (N, K).
        labels: (N,).

    Returns:
        (N,) in float32 or wider, above 0, of mean 1.
    """
    imitated, labelled = (
        cross_entropy(standardized(logits), labels, reduction="none")
        for logits in (student_logits, labelled_logits)
    )
    weights = 1 + labelled / imitated.clamp(min=torch.finfo(imitated.dtype).eps)
    return weights / weights.mean()


class IPWD(Method):
    """Soft targets weighed against a classifier that learns from labels alone."""

    batch_coupled = True
    is_soft_term = True
    reads_labels: ClassVar[bool] = True
    student_taps = ("logits", "pooled")
    teacher_taps = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=0.1, kd=0, method=0.9),
        "simkd": LossWeights(ce=1, kd=0, method=1),
    }

    def __init__(self, context: MethodContext, *, temperature: float = 4.0) -> None:
        super().__init__(context)
        if temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        width = context.student.pooled_width
        if width is None:
            raise ValueError(
                "the method puts a second classifier beside the student's linear one; it has none"
            )
        self.temperature = temperature
        self.labelled = nn.Linear(width, context.num_classes)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `ipwd`, and `labelled` of the second classifier."""
        labelled = self.labelled(pooled(student).detach())
        weights = ipwd_weights(logits_of(first(student)), labelled, batch.labels)

        def loss(own: Tensor, known: Tensor) -> Tensor:
            return ipwd_loss(own, known, weights, temperature=self.temperature)

        soft = self.soft_loss(student, teachers, loss)
        return {"ipwd": soft, "labelled": label_loss(labelled, batch.labels)}
