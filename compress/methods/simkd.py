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

Paper (Table 1, best on test): resnet32x4 -> resnet8x4 on CIFAR-100 78.08 +- 0.15. Table 5: 1x1
75.15, 1x1-1x1 75.71, depthwise 77.76, vector 76.03. Table S.7: output 77.09, both 77.88.
Measured here on 20 classes with small networks: see pipelines/simkd_cifar_cpu.yaml.
"""

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
    Views,
    first,
    last_map,
    last_maps,
)
from compress.precision import in_float32
from compress.taps import MapSpec, Taps, encoder_until

LossPlace = Literal["input", "output", "both"]


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


class Deployed(nn.Module):
    """Encoder, projector and the teacher's classifier: images (N, 3, H, W) -> logits (N, K)."""

    def __init__(
        self, encoder: nn.Module, shrink: nn.Module, projector: nn.Module, classifier: nn.Linear
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.shrink = shrink
        self.projector = projector
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        features = self.projector(self.shrink(self.encoder(images)))
        logits: Tensor = self.classifier(self.avgpool(features).flatten(1))
        return logits


class SimKD(Method):
    """Projector and a frozen copy of the teacher's classifier."""

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
    ) -> None:
        super().__init__(context)
        student_map, teacher_map = last_maps(context)
        teacher = context.teachers[0]
        if teacher.weight is None:
            raise ValueError("the method reuses the teacher's linear classifier; it has none")
        if not 1 <= reduction <= teacher_map.channels:
            raise ValueError(f"reduction is 1 to {teacher_map.channels}, got {reduction}")
        if depthwise and projector != "1x1-3x3-1x1":
            raise ValueError(
                "depthwise is the earlier name of projector 1x1-dw3x3-1x1; "
                f"give one of the two, got projector {projector} beside it"
            )
        kind: ProjectorKind = "1x1-dw3x3-1x1" if depthwise else projector
        self.last_map_path = student_map.path
        self.loss_place = loss_place
        self.shrink = (
            nn.AdaptiveAvgPool2d(1) if POOLED[kind] else shrink_to(student_map, teacher_map)
        )
        self.projector = Projector(student_map.channels, teacher_map.channels, reduction, kind=kind)
        classes, width = teacher.weight.shape
        self.classifier = nn.Linear(width, classes, bias=teacher.bias is not None)
        with torch.no_grad():
            self.classifier.weight.copy_(teacher.weight)
            if teacher.bias is not None:
                self.classifier.bias.copy_(teacher.bias)
        self.classifier.requires_grad_(False)

    def extend(self, student: Taps) -> Taps:
        """Add `projected`, P(F_s)."""
        projected = self.projector(self.shrink(last_map([student])))
        return Taps(student, projected=projected)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `simkd`, at the classifier's input, and `simkd_output`, as far as asked for."""
        projected, target = first(student).tensor("projected"), last_map(teachers[0])
        terms = {}
        if self.loss_place != "output":
            terms["simkd"] = simkd_loss(projected, target)
        if self.loss_place != "input":
            weight = self.classifier.weight
            terms["simkd_output"] = simkd_output_loss(projected, target, weight)
        return terms

    def logits(self, student: Taps) -> Tensor:
        """See `Method.logits`."""
        logits: Tensor = self.classifier(student.tensor("projected").mean((2, 3)))
        return logits

    def deploy(self, student: nn.Module) -> nn.Module:
        """See `Method.deploy`."""
        encoder = encoder_until(student, self.last_map_path)
        return Deployed(encoder, self.shrink, self.projector, self.classifier)


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
