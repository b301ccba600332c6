"""DeiT: Data-Efficient Image Transformers & Distillation through Attention (Touvron; ICML 2021).

For a student with a distillation token: z (N, K) are the logits that a linear head makes of its
class token, z_d (N, K) those that a second head makes of the distillation token, z_t (N, K) are the
teacher's logits, y the labels.

    hard: L = 1/2 CE(z, y) + 1/2 CE(z_d, argmax z_t)
    soft: L = (1 - lambda) CE(z, y) + lambda T^2 mean_n KL(softmax(z_t / T) || softmax(z_d / T))

What ships predicts the mean of z and z_d, as the student itself does in eval mode.

Taps: the outputs of both heads, the teacher's logits. The heads are those whose mean is the
student's output (`heads` of its taps), that of the class token first; `distillation_head` names the
other one. What the student gives in training mode is not read: timm's is the pair of logits after
`set_distilled_training(True)`, and their mean before. Defaults: `distillation: hard`, the paper's
best, and T = 3, lambda = 0.1 for `soft`. The two terms have weights in a recipe: `ce` that of the
labels, which the class head alone learns, and `method` that of the teacher. They are 0.5 and 0.5,
for `soft` 0.9 and 0.1, in every protocol. The authors' code (facebookresearch/deit) divides the
soft term by N K where the paper has the mean over images, as here: there it is 1 / K of this one.

Paper (README of its repository, top-1 on ImageNet): DeiT-Ti distilled by a convolutional network
74.5, without a teacher and a distillation token 72.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compress.data.batch import Batch
from compress.methods.contract import (
    HardLoss,
    LossWeights,
    Method,
    MethodContext,
    Needs,
    Views,
    first,
    logits_of,
    only_teacher,
)
from compress.methods.kd import kd_loss
from compress.precision import in_float32
from compress.taps import Taps

DistillationKind = Literal["hard", "soft"]
_SOFT = LossWeights(ce=0.9, kd=0, method=0.1)


@in_float32
def deit_loss(
    distillation_logits: Tensor,
    teacher_logits: Tensor,
    distillation: DistillationKind = "hard",
    temperature: float = 3.0,
) -> Tensor:
    """What the distillation head learns of the teacher, mean over the batch.

    Args:
        distillation_logits: z_d, (N, K).
        teacher_logits: z_t, (N, K).
        distillation: the teacher's class as a label, or its softened predictions.
        temperature: T > 0 of the soft ones.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    if distillation == "soft":
        return kd_loss(distillation_logits, teacher_logits, temperature)
    return cross_entropy(distillation_logits, teacher_logits.argmax(1))


class DeiT(Method):
    """The teacher's classes, learned by the head of a distillation token."""

    is_soft_term = True
    teacher_taps = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = dict.fromkeys(
        ("crd", "simkd", "segmentation"), LossWeights(ce=0.5, kd=0, method=0.5)
    )

    def __init__(
        self,
        context: MethodContext,
        *,
        distillation: DistillationKind = "hard",
        temperature: float = 3.0,
        distillation_head: str | None = None,
    ) -> None:
        super().__init__(context)
        only_teacher(context)
        if distillation not in ("hard", "soft"):
            raise ValueError(f"distillation is hard or soft, got {distillation}")
        if temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        heads = context.student.heads
        if len(heads) != 2:
            raise ValueError(
                "the method trains the head of a distillation token, and the student's output is "
                "not the mean of two heads, as that of timm:deit_tiny_distilled_patch16_224 is"
            )
        own = heads[1] if distillation_head is None else distillation_head
        if own not in heads:
            raise ValueError(f"distillation_head is {' or '.join(heads)}, got {own}")
        self.distillation: DistillationKind = distillation
        self.temperature = temperature
        self.distillation_head = own
        self.class_head = heads[1 - heads.index(own)]
        self.student_taps = (self.class_head, self.distillation_head)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`: soft targets have weights of their own."""
        needs = super().needs(arguments)
        if arguments.get("distillation") != "soft":
            return needs
        return replace(needs, protocols=dict.fromkeys(cls.protocols, _SOFT))

    def hard_loss(self, student: Views, batch: Batch, loss: HardLoss) -> Tensor:
        """That of the class head alone."""
        return loss(first(student).tensor(self.class_head), batch.labels)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `deit`."""
        own = first(student).tensor(self.distillation_head)
        known = logits_of(first(teachers[0]))
        return {"deit": deit_loss(own, known, self.distillation, self.temperature)}

    def logits(self, student: Taps) -> Tensor:
        """The mean of both heads', see `Method.logits`."""
        heads = [student.tensor(self.class_head), student.tensor(self.distillation_head)]
        return torch.stack(heads).mean(0)
