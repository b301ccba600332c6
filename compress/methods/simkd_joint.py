"""SimKD with a classifier that learns beside it: the joint training of eq. 4 (Chen et al., 2022).

L = (1 - alpha) (CE(g_s, y) + T^2 KL(p_t || p_s)) + alpha L_SimKD, where g_s (N, K) are the logits
of the student's own classifier and L_SimKD is `simkd`'s mean squared difference of the projected
and the teacher's last map. Two classifiers then read the one encoder: the student's own, and the
teacher's behind the projector. Both are evaluated after each epoch. `ships` says which of them what
is saved, fused and exported ends in; the other's accuracy stands beside it in results, as
`top1_percent/own_classifier` or `top1_percent/teacher_classifier`.

Taps: last map of both, logits. 0 < alpha < 1: at 0 the projector learns nothing (method `kd` with
weights ce 1, kd 1 is that row of the paper's tables), at 1 the student's classifier (`simkd`). The
two losses differ in scale by far, the map's being a mean of about 0.3, so that the paper's alphas
go up to 0.999; it has no default, here 0.9. Loss weights: 1 CE, 1 KD, 1, in either protocol,
on top of alpha. No released code.

Paper (Table S.4, best on test): resnet32x4 -> resnet8x4 on CIFAR-100, own classifier | teacher's:
alpha 0.2 74.42 | 73.91, 0.9 73.52 | 74.42, 0.99 30.77 | 77.66, 0.999 5.59 | 77.98.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from compress.data.batch import Batch
from compress.methods.blocks.projectors import ProjectorKind
from compress.methods.contract import (
    HardLoss,
    LossWeights,
    MethodContext,
    SoftLoss,
    Views,
    first,
    logits_of,
    only_teacher,
    published,
)
from compress.methods.simkd import SimKD
from compress.taps import Taps

JointClassifier = Literal["own_classifier", "teacher_classifier"]


class SimKDJoint(SimKD):
    """SimKD beside KD on the student's own classifier."""

    protocols: ClassVar[Mapping[str, LossWeights]] = dict.fromkeys(
        ("crd", "simkd"), published(1)["simkd"]
    )

    def __init__(
        self,
        context: MethodContext,
        *,
        alpha: float = 0.9,
        ships: JointClassifier = "teacher_classifier",
        projector: ProjectorKind = "1x1-3x3-1x1",
        reduction: int = 2,
    ) -> None:
        only_teacher(context)
        super().__init__(context, projector=projector, reduction=reduction)
        if not 0 < alpha < 1:
            raise ValueError(
                f"alpha is above 0 (method kd) and below 1 (method simkd), got {alpha}"
            )
        self.alpha = alpha
        self.ships = ships

    def hard_loss(self, student: Views, batch: Batch, loss: HardLoss) -> Tensor:
        """(1 - alpha) CE of the student's own classifier."""
        return (1 - self.alpha) * loss(logits_of(first(student)), batch.labels)

    def soft_loss(self, student: Views, teachers: Sequence[Views], loss: SoftLoss) -> Tensor:
        """(1 - alpha) T^2 KL of the student's own classifier."""
        own, known = logits_of(first(student)), logits_of(first(teachers[0]))
        return (1 - self.alpha) * loss(own, known)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `simkd`, times alpha."""
        terms = super().forward(student, teachers, batch)
        return {name: self.alpha * value for name, value in terms.items()}

    def logits(self, student: Taps) -> Tensor:
        """Those of the classifier that ships, see `Method.logits`."""
        predict = {"own_classifier": logits_of, "teacher_classifier": super().logits}
        return predict[self.ships](student)

    def deploy(self, student: nn.Module) -> nn.Module:
        """See `Method.deploy`."""
        return self._networks(student)[self.ships]

    def judged_beside(self, student: nn.Module) -> Mapping[str, nn.Module]:
        """The network that ends in the other classifier."""
        return {k: v for k, v in self._networks(student).items() if k != self.ships}

    def _networks(self, student: nn.Module) -> Mapping[str, nn.Module]:
        reused = super().deploy(student)
        return {"own_classifier": student, "teacher_classifier": reused}
