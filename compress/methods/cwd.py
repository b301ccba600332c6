"""CWD: Channel-wise Knowledge Distillation for Dense Prediction (Shu et al., ICCV 2021).

L = T^2 / (N C) sum_n sum_c KL(phi(t_nc) || phi(s_nc)), phi(x) the softmax over the positions of
x / T: where in the image a channel is active. s and t are maps (N, C, h, w) of student and teacher.
Two terms: of the logits, and of the last maps, where the student's goes through a 1x1 convolution
with batch norm and ReLU to the teacher's channels first.

Taps: logits and last maps (the input of the last 1x1 convolution) of both. T = 4 and weight 3 on
logits are those of the released script (irfanICMLL/TorchDistiller, exp_cwd.sh), 50 on features is
the paper's; a term of weight 0 is not built. The paper uses one of the two at a time. Where the
maps differ in size, the student's is enlarged. The released code takes the logarithm of the
softmax, here log-softmax, which does not overflow.

Measured here: benchmarks/results/segmentation.md.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from compress.data.batch import Batch
from compress.methods.contract import (
    Method,
    MethodContext,
    Views,
    enlarged_to,
    first,
    last_map,
    last_maps,
    logits_of,
    only_teacher,
)
from compress.precision import in_float32
from compress.taps import Taps


@in_float32
def cwd_loss(student_map: Tensor, teacher_map: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL of each channel's distribution over positions, mean over images and channels.

    Args:
        student_map: (N, C, h, w).
        teacher_map: (N, C, h, w).
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    log_q = log_softmax(student_map.flatten(2) / temperature, dim=2)
    log_p = log_softmax(teacher_map.flatten(2) / temperature, dim=2)
    channels = log_q.shape[0] * log_q.shape[1]
    return temperature**2 * kl_div(log_q, log_p, reduction="sum", log_target=True) / channels


class CWD(Method):
    """Channels of the logits, of the last map, or both."""

    dense: ClassVar[bool] = True
    images: ClassVar[bool] = False
    student_taps: Sequence[str] = ("logits", "last_map")
    teacher_taps: Sequence[str] = ("logits", "last_map")

    def __init__(
        self,
        context: MethodContext,
        *,
        logits_weight: float = 3.0,
        features_weight: float = 0.0,
        temperature: float = 4.0,
    ) -> None:
        if min(logits_weight, features_weight) < 0 or logits_weight + features_weight == 0:
            raise ValueError(
                "logits_weight and features_weight are at least 0 and not both 0, got "
                f"{logits_weight} and {features_weight}"
            )
        if temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        only_teacher(context)
        super().__init__(context)
        self.logits_weight, self.features_weight = logits_weight, features_weight
        self.temperature = temperature
        wanted = {"logits": logits_weight, "last_map": features_weight}
        self.student_taps = self.teacher_taps = tuple(k for k, w in wanted.items() if w)
        if features_weight:
            student, teacher = last_maps(context)
            self.projector = nn.Sequential(
                nn.Conv2d(student.channels, teacher.channels, 1, bias=False),
                nn.BatchNorm2d(teacher.channels),
                nn.ReLU(),
            )

    def extend(self, student: Taps) -> Taps:
        """Add the projected last map."""
        if not self.features_weight:
            return student
        return Taps({**student, "projected": self.projector(student.tensor("last_map"))})

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `logits` and `features`, without one of weight 0."""
        teacher, terms = teachers[0], {}
        if self.logits_weight:
            target = logits_of(first(teacher))
            own = enlarged_to(self.logits(first(student)), target)
            terms["logits"] = self.logits_weight * cwd_loss(own, target, self.temperature)
        if self.features_weight:
            target = last_map(teacher)
            own = enlarged_to(first(student).tensor("projected"), target)
            terms["features"] = self.features_weight * cwd_loss(own, target, self.temperature)
        return terms
