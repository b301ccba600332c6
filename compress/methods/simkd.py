"""SimKD: Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022).

L = mean over N, C_t, H, W of (P(F_s) - F_t)^2, with the last feature maps F_s (N, C_s, H, W) and
F_t (N, C_t, H, W) before global pooling. The projector P is conv 1x1 C_s -> C_t/r, conv 3x3
C_t/r -> C_t/r, conv 1x1 C_t/r -> C_t, each without bias and followed by batch norm and ReLU. Where
the maps differ in size the larger is average-pooled. The student that ships is encoder -> P ->
global average pooling -> the teacher's own classifier (weight and bias); its own is dropped.
Parameters of P: C_t (C_s + C_t + 4) / r + 9 C_t^2 / r^2 + 2 C_t (eq. 5, batch norm included).

Taps: last map of both, as the pooling reads it. (The authors' code takes the map before the last
1x1 convolution of MobileNetV2 and ShuffleNetV2; the paper's parameter tables fit the one after it.)
With `depthwise` the 3x3 convolution has a group per channel, as in the paper's ImageNet runs
(9 C_t / r parameters in place of 9 C_t^2 / r^2). r = 2 is the paper's and the code's default. The
paper's eq. 3 is a sum of squared norms, the code takes the mean over every element, as here. Loss
weights: 0 CE, 0 KD, 1, in either protocol. Where the student's map is the larger one, the ratio of
the sizes must be whole (the authors' code pools to any size): what ships then has a fixed stride.

Paper (Table 1, best on test): resnet32x4 -> resnet8x4 on CIFAR-100 78.08 +- 0.15.
Measured here on 20 classes with small networks: see pipelines/simkd_cifar_cpu.yaml.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, mse_loss

from compress.data.batch import Batch
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
from compress.taps import Taps, encoder_until


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


class Projector(nn.Sequential):
    """(N, C_s, H, W) -> (N, C_t, H, W), non-negative; see the module's docstring."""

    def __init__(
        self, channels_in: int, channels_out: int, reduction: int, *, depthwise: bool = False
    ) -> None:
        middle = channels_out // reduction
        groups = middle if depthwise else 1
        super().__init__(
            nn.Conv2d(channels_in, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


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

    student_taps = ("last_map",)
    teacher_taps = ("last_map",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=0, kd=0, method=1),
        "simkd": LossWeights(ce=0, kd=0, method=1),
    }

    def __init__(
        self, context: MethodContext, *, reduction: int = 2, depthwise: bool = False
    ) -> None:
        super().__init__(context)
        student_map, teacher_map = last_maps(context)
        teacher = context.teachers[0]
        if teacher.weight is None:
            raise ValueError("the method reuses the teacher's linear classifier; it has none")
        if not 1 <= reduction <= teacher_map.channels:
            raise ValueError(f"reduction is 1 to {teacher_map.channels}, got {reduction}")
        strides = (
            _stride(student_map.height, teacher_map.height),
            _stride(student_map.width, teacher_map.width),
        )
        self.last_map_path = student_map.path
        # A fixed stride, not a fixed size: what ships takes other image sizes.
        self.shrink = nn.AvgPool2d(strides) if max(strides) > 1 else nn.Identity()
        self.projector = Projector(
            student_map.channels, teacher_map.channels, reduction, depthwise=depthwise
        )
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
        """The term `simkd`."""
        return {"simkd": simkd_loss(first(student).tensor("projected"), last_map(teachers[0]))}

    def logits(self, student: Taps) -> Tensor:
        """See `Method.logits`."""
        logits: Tensor = self.classifier(student.tensor("projected").mean((2, 3)))
        return logits

    def deploy(self, student: nn.Module) -> nn.Module:
        """See `Method.deploy`."""
        encoder = encoder_until(student, self.last_map_path)
        return Deployed(encoder, self.shrink, self.projector, self.classifier)


def _stride(student: int, teacher: int) -> int:
    """Pixels of the student's map for each of the teacher's, 1 where the teacher's is larger."""
    if student > teacher and student % teacher:
        raise ValueError(
            f"the student's {student}-pixel map is pooled to the teacher's {teacher} by a whole "
            f"stride, which {student / teacher:.2f} is not; choose another image size or pair"
        )
    return max(1, student // teacher)
