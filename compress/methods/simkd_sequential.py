"""SimKD with a new classifier: the sequential training of Table 4 (Chen et al., CVPR 2022).

First SimKD (see `simkd`): the student's features are aligned with the teacher's. Then the encoder
is frozen in eval mode, so that no buffer of it moves, and a new linear classifier learns by cross
entropy alone from what it reads, f_s (N, C_s): L = CE(W f_s + b, y). What ships is encoder, pooling
and that classifier: the student's architecture with not a parameter more. The projector and the
teacher's classifier are dropped.

Taps: last map of both; pooled vector of the student. The paper does not say whether the classifier
reads f_s or P(f_s); its accuracies (51.97 where SimKD has 78.08) speak for the first, which is what
linear evaluation reads. The new classifier is the student's own, which no term of the main training
reaches: it still has its initial weights (with `student.weights`, those). `classifier_epochs` and
`classifier_lr` are those of the main training unless given, as is the schedule: 240 epochs, 0.05
(0.01 for MobileNets and ShuffleNets), divided by 10 after 150, 180 and 210 (appendix B.3). Loss
weights of the main training: SimKD's. No released code.

In a result the main numbers are those of the new classifier, `main_training` has SimKD's.

Paper (Table 4, best on test): resnet32x4 -> resnet8x4 on CIFAR-100 51.97 +- 0.19 (SimKD 78.08).
Table S.6: learning rates 0.01, 0.05, 0.1, 0.5 give 52.03, 51.97, 52.01, 51.93.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.data.batch import Batch
from compress.methods.blocks.projectors import ProjectorKind
from compress.methods.contract import MethodContext, Phase, Views, pooled
from compress.methods.simkd import SimKD
from compress.precision import in_float32
from compress.taps import Tapped

_cross_entropy = in_float32(cross_entropy)


class SimKDSequential(SimKD):
    """SimKD, then a new classifier on its frozen encoder."""

    reads_labels = True
    student_taps = ("last_map", "pooled")

    def __init__(
        self,
        context: MethodContext,
        *,
        projector: ProjectorKind = "1x1-3x3-1x1",
        reduction: int = 2,
        classifier_epochs: int | None = None,
        classifier_lr: float | None = None,
    ) -> None:
        super().__init__(context, projector=projector, reduction=reduction)
        if context.student.classifier is None:
            raise ValueError("the method trains the student's linear classifier; it has none")
        if classifier_epochs is not None and classifier_epochs < 1:
            raise ValueError(
                "classifier_epochs is 1 or more, or null for those of the main training; "
                f"got {classifier_epochs}"
            )
        if classifier_lr is not None and not 0 < classifier_lr < math.inf:
            raise ValueError(
                f"classifier_lr is above 0, or null for the main training's; got {classifier_lr}"
            )
        self.classifier_epochs = classifier_epochs or context.epochs
        self.classifier_lr = classifier_lr
        self._student: Tapped | None = None

    def bind(self, student: Tapped) -> None:
        """See `Method.bind`."""
        self._student = student  # no module: registered here, the student would be saved twice

    def phases_after(self) -> list[Phase]:
        """The new classifier's training."""
        return [
            Phase(
                "classifier",
                self.classifier_epochs,
                [*self._new_classifier().parameters()],
                self._classifier_loss,
                lr=self.classifier_lr,
                schedule="recipe",
                student="frozen",
                reads_teachers=False,
                judged=True,
            )
        ]

    def _classifier_loss(
        self, student: Views, teachers: Sequence[Views], batch: Batch
    ) -> dict[str, Tensor]:
        logits = self._new_classifier()(pooled(student))
        return {"classifier": _cross_entropy(logits, batch.labels)}

    def _new_classifier(self) -> nn.Module:
        path = self.context.student.classifier
        assert self._student is not None and path is not None
        return self._student.network.get_submodule(path)

    def ship(self, student: nn.Module) -> nn.Module:
        """The student with its own classifier, see `Method.ship`."""
        return student
