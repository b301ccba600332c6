"""WSLD: Rethinking Soft Labels for Knowledge Distillation (Zhou et al.; ICLR 2021).

L = alpha T^2 mean_n w_n H_n, with H_n = -sum_k p_nk log q_nk the cross entropy of the softened
predictions p = softmax(z_t / T), q = softmax(z_s / T) of teacher and student logits, and the weight
of image n w_n = 1 - exp(-c_s / (c_t + 1e-7)), a constant in each step: c = -log softmax(z)_y is the
loss of either network at T = 1 on the label y. Soft labels count little where the student is surer
of the label than the teacher, which then only regularises: variance falls and bias grows.

Taps: logits of both, and labels. As in the authors' code (bellymonster/Weighted-Soft-Label-
Distillation) H is not the divergence: the gradient is the same, and the least value is not 0 but
the entropy of p. That code is for ImageNet, with T = 2 and alpha = 2.5. The defaults, T = 4 and
alpha = 2.25, are those commonly given for CIFAR-100, which no released code confirms. The term
takes the place of KD: both protocols are CE + WSLD. Several teachers: the mean of their terms.

Paper (supplement of DCD, Table 7): resnet32x4 -> resnet8x4 on CIFAR-100 74.79.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compress.data.batch import Batch
from compress.methods.contract import LossWeights, Method, MethodContext, Views
from compress.precision import in_float32

_EPSILON = 1e-7


@in_float32
def wsld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 2.25,
) -> Tensor:
    """alpha T^2 w H, mean over the images.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K).
        labels: (N,).
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    targets = (teacher_logits / temperature).softmax(1)
    soft = cross_entropy(student_logits / temperature, targets, reduction="none")
    weights = _weights(student_logits, teacher_logits, labels)
    return alpha * temperature**2 * (weights * soft).mean()


@torch.no_grad()
def _weights(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """w (N,), from 0 to 1."""
    own, known = (
        cross_entropy(logits, labels, reduction="none")
        for logits in (student_logits, teacher_logits)
    )
    return -torch.expm1(-own / (known + _EPSILON))


class WSLD(Method):
    """Soft targets, each image weighed by how much surer the teacher is of its label."""

    is_soft_term = True
    reads_labels: ClassVar[bool] = True
    student_taps = ("logits",)
    teacher_taps = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = dict.fromkeys(
        ("crd", "simkd"), LossWeights(ce=1, kd=0, method=1)
    )

    def __init__(
        self, context: MethodContext, *, temperature: float = 4.0, alpha: float = 2.25
    ) -> None:
        super().__init__(context)
        for name, value in (("temperature", temperature), ("alpha", alpha)):
            if value <= 0:
                raise ValueError(f"{name} is above 0, got {value}")
        self.temperature, self.alpha = temperature, alpha

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `wsld`."""

        def loss(own: Tensor, known: Tensor) -> Tensor:
            return wsld_loss(
                own, known, batch.labels, temperature=self.temperature, alpha=self.alpha
            )

        return {"wsld": self.soft_loss(student, teachers, loss)}
