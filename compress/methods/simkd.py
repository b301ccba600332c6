"""SimKD: Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022).

L = mean over N, C_t, H, W of (P(F_s) - F_t)^2, with the last feature maps F_s (N, C_s, H, W) and
F_t (N, C_t, H, W) before global pooling. The projector P is conv 1x1 C_s -> C_t/r, conv 3x3
C_t/r -> C_t/r, conv 1x1 C_t/r -> C_t, each without bias and followed by batch norm and ReLU. Where
the maps differ in size the larger is average-pooled. The student that ships is encoder -> P ->
global average pooling -> the teacher's own classifier (weight and bias); its own is dropped.
Parameters of P: C_t (C_s + C_t + 4) / r + 9 C_t^2 / r^2 + 2 C_t (eq. 5, batch norm included).

Taps: last map of both, as the pooling reads it. (The authors' code takes the map before the last
1x1 convolution of MobileNetV2 and ShuffleNetV2; the paper's parameter tables fit the one after it.)
`projector` names the other kinds of Table 5, see `blocks.projectors`; `1x1-dw3x3-1x1`, in earlier
recipes `depthwise: true`, is that of the paper's ImageNet runs. r = 2 is the paper's and the code's
default. `loss_place` is that of Table S.7: at the classifier's input (L above), at its output
(mean over N, K of (W_t (f_s - f_t))^2 with f the maps' spatial means), or both, as two terms. The
paper's losses are sums of squared norms, the code takes the mean over every element, as here; at
the output, which the code does not have, too. Loss weights: 0 CE, 0 KD, 1, in either protocol.
Where the student's map is the larger one, the ratio of the sizes must be whole (the authors' code
pools to any size): what ships then has a fixed stride.

Several teachers (section 4.4): a projector and a classifier for each, the mean of their losses, and
what ships predicts the mean of their logits or, with `combine: predictions`, the logarithm of the
mean of their predictions. The paper does not say which, and has no code for it.

Paper (Table 1, best on test): resnet32x4 -> resnet8x4 on CIFAR-100 78.08 +- 0.15. Table 5: 1x1
75.15, 1x1-1x1 75.71, depthwise 77.76, vector 76.03. Table S.7: output 77.09, both 77.88. Table 6:
three resnet32x4 -> shufflenetv2 78.59 +- 0.31.
Measured here: resnet32x4 -> resnet8x4 on CIFAR-100, 48 epochs, see benchmarks/results/gpu.md; on 20
classes with small networks, see pipelines/simkd_cifar_cpu.yaml.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, linear, mse_loss

from compress.data.batch import Batch
from compress.methods.blocks.projectors import POOLED, Projector, ProjectorKind
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    TeacherContext,
    Views,
    first,
    last_map,
    last_maps,
    require_plain_pooling,
)
from compress.precision import in_float32
from compress.taps import MapSpec, Taps, encoder_until

LossPlace = Literal["input", "output", "both"]
Combination = Literal["logits", "predictions"]


@in_float32
def simkd_loss(projected: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of two maps.

    Args:
        projected: P(F_s), (N, C_t, H, W).
        teacher_map: F_t, (N, C_t, H', W'), pooled to (H, W) where it is larger.

    Returns:
        A scalar in float32 or wider, mean over every element.
    """
    if teacher_map.shape[-2:] != projected.shape[-2:]:
        teacher_map = adaptive_avg_pool2d(teacher_map, (projected.shape[-2], projected.shape[-1]))
    return mse_loss(projected, teacher_map)


@in_float32
def simkd_output_loss(projected: Tensor, teacher_map: Tensor, weight: Tensor) -> Tensor:
    """Mean squared difference of what the teacher's classifier makes of two maps.

    Args:
        projected: P(F_s), (N, C_t, H, W).
        teacher_map: F_t, (N, C_t, H', W').
        weight: W_t of the classifier, (K, C_t); its bias is the same on both sides.

    Returns:
        A scalar in float32 or wider: mean over N, K of (W_t (mean P(F_s) - mean F_t))^2, where the
        inner means are over the pixels.
    """
    difference = projected.mean((2, 3)) - teacher_map.mean((2, 3))
    return linear(difference, weight).square().mean()


def combine_logits(logits: Sequence[Tensor], combination: Combination) -> Tensor:
    """The prediction of several classifiers, as logits (N, K).

    Part of what ships: torch.fx must trace it, or no batch norm can be folded.

    Args:
        logits: (N, K) of each classifier.
        combination: mean of the `logits`, or logarithm of the mean of the `predictions`.
    """
    if len(logits) == 1:
        return logits[0]
    if combination == "logits":
        return torch.stack([*logits]).mean(0)
    return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0) - math.log(len(logits))


class Branch(nn.Module):
    """Projector to one teacher's map and a frozen copy of its classifier."""

    def __init__(
        self, student_map: MapSpec, teacher: TeacherContext, reduction: int, kind: ProjectorKind
    ) -> None:
        super().__init__()
        teacher_map = teacher.taps.last_map
        assert teacher_map is not None
        if teacher.weight is None:
            raise ValueError("the method reuses the teacher's linear classifier; it has none")
        if not 1 <= reduction <= teacher_map.channels:
            raise ValueError(f"reduction is 1 to {teacher_map.channels}, got {reduction}")
        self.shrink = (
            nn.AdaptiveAvgPool2d(1) if POOLED[kind] else shrink_to(student_map, teacher_map)
        )
        self.projector = Projector(student_map.channels, teacher_map.channels, reduction, kind=kind)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = copy_classifier(teacher.weight, teacher.bias)

    def forward(self, student_map: Tensor) -> Tensor:
        """F_s (N, C_s, H, W) -> logits (N, K)."""
        features = self.projector(self.shrink(student_map))
        logits: Tensor = self.classifier(self.avgpool(features).flatten(1))
        return logits


class Deployed(nn.Module):
    """Encoder, projector and the teacher's classifier: images (N, 3, H, W) -> logits (N, K)."""

    def __init__(
        self,
        encoder: nn.Module,
        branch: Branch,
        others: Sequence[Branch] = (),
        combination: Combination = "logits",
    ) -> None:
        """`branch` is that of the first teacher, `others` are those of further ones."""
        super().__init__()
        self.encoder = encoder
        self.shrink = branch.shrink
        self.projector = branch.projector
        self.avgpool = branch.avgpool
        self.classifier = branch.classifier
        self.others = nn.ModuleList(others)
        self.combination: Combination = combination

    def forward(self, images: Tensor) -> Tensor:
        last = self.encoder(images)
        features = self.projector(self.shrink(last))
        logits: Tensor = self.classifier(self.avgpool(features).flatten(1))
        if not len(self.others):
            return logits
        return combine_logits([logits, *(other(last) for other in self.others)], self.combination)


class SimKD(Method):
    """Projector and a frozen copy of the teacher's classifier."""

    reads_classifier = True
    student_taps: Sequence[str] = ("last_map",)
    teacher_taps = ("last_map",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=0, kd=0, method=1),
        "simkd": LossWeights(ce=0, kd=0, method=1),
    }

    def __init__(
        self,
        context: MethodContext,
        *,
        projector: ProjectorKind = "1x1-3x3-1x1",
        reduction: int = 2,
        depthwise: bool = False,
        loss_place: LossPlace = "input",
        combine: Combination = "logits",
    ) -> None:
        super().__init__(context)
        if not context.teachers:
            raise ValueError("the method reads one teacher or more, got none")
        maps = [last_maps(one) for one in context.for_each_teacher()]
        student_map = maps[0][0]
        for teacher in context.teachers:
            require_plain_pooling(teacher.taps, "teacher")
        if depthwise and projector != "1x1-3x3-1x1":
            raise ValueError(
                "depthwise is the earlier name of projector 1x1-dw3x3-1x1; "
                f"give one of the two, got projector {projector} beside it"
            )
        kind: ProjectorKind = "1x1-dw3x3-1x1" if depthwise else projector
        self.last_map = student_map
        self.loss_place = loss_place
        self.combination: Combination = combine
        branch, *others = [Branch(student_map, t, reduction, kind) for t in context.teachers]
        self._branch = [branch]  # no module: its parts are, under the names that they always had
        self.shrink = branch.shrink
        self.projector = branch.projector
        self.classifier = branch.classifier
        self.others = nn.ModuleList(others)

    @property
    def branches(self) -> list[Branch]:
        """One for each teacher."""
        return [*self._branch, *self.others]

    def extend(self, student: Taps) -> Taps:
        """Add `projected`, P(F_s) for each teacher."""
        own = last_map([student])
        return Taps(student, projected=[b.projector(b.shrink(own)) for b in self.branches])

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `simkd`, at the classifier's input, and `simkd_output`, as far as asked for."""
        projected = first(student).tensors("projected")
        pairs = [*zip(projected, map(last_map, teachers), strict=True)]
        terms = {}
        if self.loss_place != "output":
            terms["simkd"] = _mean([simkd_loss(*pair) for pair in pairs])
        if self.loss_place != "input":
            weights = [branch.classifier.weight for branch in self.branches]
            losses = [simkd_output_loss(*p, w) for p, w in zip(pairs, weights, strict=True)]
            terms["simkd_output"] = _mean(losses)
        return terms

    def logits(self, student: Taps) -> Tensor:
        """See `Method.logits`."""
        pairs = zip(self.branches, student.tensors("projected"), strict=True)
        return combine_logits([b.classifier(p.mean((2, 3))) for b, p in pairs], self.combination)

    def deploy(self, student: nn.Module) -> nn.Module:
        """See `Method.deploy`."""
        encoder = encoder_until(student, self.last_map)
        branch, *others = self.branches
        return Deployed(encoder, branch, others, self.combination)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack([*losses]).mean()


def copy_classifier(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen linear layer with a teacher's weight (K, D) and bias (K,)."""
    classes, width = weight.shape
    classifier = nn.Linear(width, classes, bias=bias is not None)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if bias is not None:
            classifier.bias.copy_(bias)
    return classifier.requires_grad_(False)


def shrink_to(student: MapSpec, teacher: MapSpec) -> nn.Module:
    """Pools the student's map to the teacher's size; nothing where that is the larger one."""
    strides = _stride(student.height, teacher.height), _stride(student.width, teacher.width)
    # A fixed stride, not a fixed size: what ships takes other image sizes.
    return nn.AvgPool2d(strides) if max(strides) > 1 else nn.Identity()


def _stride(student: int, teacher: int) -> int:
    """Pixels of the student's map for each of the teacher's, 1 where the teacher's is larger."""
    if student > teacher and student % teacher:
        raise ValueError(
            f"the student's {student}-pixel map is pooled to the teacher's {teacher} by a whole "
            f"stride, which {student / teacher:.2f} is not; choose another image size or pair"
        )
    return max(1, student // teacher)
