"""DIST: Knowledge Distillation from A Stronger Teacher (Huang et al.; NeurIPS 2022).

L = T^2 (beta (1 - mean_n r(s_n., t_n.)) + gamma (1 - mean_k r(s_.k, t_.k))), with the softened
predictions s, t = softmax(z / T) (N, K) of student and teacher and Pearson's correlation r(a, b) =
a' . b' / (|a'| |b'| + 1e-8), a' = a - mean(a). The first term compares the classes of each image
(inter-class), the second the images of the batch in each class (intra-class): both ask for the
teacher's order and ratios, not for its very numbers.

Taps: logits of both. beta = gamma = 1, weight 2 and T = 4 are the authors' for CIFAR-100
(hunto/image_classification_sota, dist_cifar.yaml). On ImageNet they have T = 1, and on Cityscapes
T = 1 and weight 1 (hunto/DIST_KD), where every pixel is a row. The term takes the place of KD,
which stands beside it in no protocol. The second term depends on the batch size, 64 in their runs
on CIFAR-100; `gamma: 0` relates no images. Several teachers: the mean of their terms.

A row or column that is constant has no correlation: r = 0. The code's gradient is up to 1e8 there,
as for a classifier that begins with zeros; here r fades out below a length |a'| of 1e-5
(`blocks.directions.fading`), where it compares rounding errors. The second term of a batch of one
is gamma T^2. The code for segmentation distils the auxiliary head, too, which here learns from
labels alone.

Paper (README of hunto/DIST_KD): resnet32x4 -> resnet8x4 on CIFAR-100 76.31 +- 0.19.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.data.batch import Batch
from compress.methods.blocks.directions import fading
from compress.methods.contract import LossWeights, Method, MethodContext, Needs, Views
from compress.precision import in_float32

_EPSILON = 1e-8
_USUAL_LENGTH = 1e-2  # of predictions; below 1e-3 of it they fade out


@in_float32
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """L of a batch.

    Args:
        student_logits: (N, K), or of pixels (N, K, h, w), each of which is a row.
        teacher_logits: of the same shape.
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    own, known = (
        (logits / temperature).softmax(1).movedim(1, -1).flatten(0, -2)
        for logits in (student_logits, teacher_logits)
    )
    inter = 1 - _correlations(own, known).mean()
    intra = 1 - _correlations(own.t(), known.t()).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of a with that of b."""
    a, b = (rows - rows.mean(1, keepdim=True) for rows in (a, b))
    lengths, others = (torch.linalg.vector_norm(rows, dim=1) for rows in (a, b))
    usual = lengths.new_full((), _USUAL_LENGTH)
    shares = fading(lengths, usual) * fading(others, usual)
    correlations: Tensor = (a * b).sum(1) / (lengths * others + _EPSILON) * shares
    return correlations


class DIST(Method):
    """Correlations of predictions, over the classes and over the batch."""

    batch_coupled = True  # but for the classes alone
    dense = True
    student_taps = ("logits",)
    teacher_taps = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=1, kd=0, method=2),
        "simkd": LossWeights(ce=1, kd=0, method=2),
        "segmentation": LossWeights(ce=1, kd=0, method=1),
    }

    def __init__(
        self,
        context: MethodContext,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(context, self.needs({"gamma": gamma}))
        if min(beta, gamma) < 0 or beta + gamma == 0:
            raise ValueError(f"beta and gamma are at least 0 and not both 0, got {beta}, {gamma}")
        if temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        self.beta, self.gamma = beta, gamma
        self.temperature = temperature

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`: without the second term no images are related."""
        coupled = bool(cls.with_defaults(arguments)["gamma"])
        return replace(super().needs(arguments), batch_coupled=coupled)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `dist`."""

        def loss(own: Tensor, known: Tensor) -> Tensor:
            return dist_loss(
                own, known, temperature=self.temperature, beta=self.beta, gamma=self.gamma
            )

        return {"dist": self.soft_loss(student, teachers, loss)}
