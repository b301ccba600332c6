"""SRRL: Knowledge Distillation via Softmax Regression Representation Learning (Yang, ICLR 2021).

L = mean over N, D_t of (v - f_t)^2 + mean over N, K of (W v + b - z_t)^2, with v = ReLU(BN(C f_s)),
f_s (N, D_s) and f_t (N, D_t) what the classifiers of student and teacher read, C (D_t, D_s) a
linear layer without bias, BN batch norm, W (K, D_t) and b (K,) a frozen copy of the teacher's
classifier, through which the gradient passes, and z_t (N, K) the teacher's logits.

Taps: pooled vectors of both, the teacher's logits. There are two forms, which are different
functions. `connect: pooled` is that of the SimKD repository, whose table is the one we compare
with. `connect: map` is that of the authors' own code (jingyang2017/KD_SRRL): C is a 1x1 convolution
of the student's last map, and convolution, batch norm and ReLU come before the global pooling, so
that batch norm's statistics and what ReLU cuts are per pixel; its initial weights are normal with
variance 2 / D_t, in the other form PyTorch's. That code trains with CE and this term, which is the
protocol `crd` here; the SimKD repository adds KD. Weight: 1 in either protocol. The student that
ships keeps its own classifier.

Paper (SimKD Table 1, best on test, with CE + KD): resnet32x4 -> resnet8x4 on CIFAR-100
75.39 +- 0.34.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from compress.data.batch import Batch
from compress.methods.blocks.heads import register_classifier
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    first,
    last_map,
    logits_of,
    only_teacher,
    pooled,
    pooled_widths,
    published,
)
from compress.precision import in_float32


@in_float32
def srrl_loss(
    projected: Tensor,
    teacher_pooled: Tensor,
    teacher_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Mean squared differences of the features and of what the teacher's classifier makes of them.

    Args:
        projected: v, (N, D_t).
        teacher_pooled: f_t, (N, D_t).
        teacher_logits: z_t, (N, K).
        weight: W, (K, D_t).
        bias: b, (K,), None where the classifier has none.

    Returns:
        A scalar >= 0 in float32 or wider; both terms are means over every element.
    """
    logits = linear(projected, weight, bias)
    return mse_loss(projected, teacher_pooled) + mse_loss(logits, teacher_logits)


class _MapConnector(nn.Module):
    """(N, C, H, W) -> (N, D_t), pooled last."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        nn.init.normal_(self.convolution.weight, std=math.sqrt(2 / width))

    def forward(self, maps: Tensor) -> Tensor:
        connected: Tensor = self.norm(self.convolution(maps)).relu()
        return connected.mean((2, 3))


class SRRL(Method):
    """A connector to the teacher's features, and the teacher's classifier that reads them."""

    reads_classifier = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled", "logits")
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, context: MethodContext, *, connect: Literal["pooled", "map"] = "pooled"
    ) -> None:
        super().__init__(context)
        student_width, teacher_width = pooled_widths(context)
        teacher = only_teacher(context)
        self.connector: nn.Module
        if connect == "pooled":
            self.connector = nn.Sequential(
                nn.Linear(student_width, teacher_width, bias=False),
                nn.BatchNorm1d(teacher_width),
                nn.ReLU(),
            )
        else:
            spec = context.student.last_map
            if spec is None:
                raise ValueError(
                    "connect: map reads the student's last map before global pooling, "
                    "and it has none; take connect: pooled"
                )
            self.student_taps = ("last_map",)
            self.connector = _MapConnector(spec.channels, teacher_width)
        assert teacher.weight is not None
        register_classifier(self, teacher.weight, teacher.bias)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `srrl`."""
        teacher = teachers[0]
        on_map = isinstance(self.connector, _MapConnector)
        projected = self.connector(last_map(student) if on_map else pooled(student))
        teacher_logits = logits_of(first(teacher))
        loss = srrl_loss(projected, pooled(teacher), teacher_logits, self.weight, self.bias)
        return {"srrl": loss}
