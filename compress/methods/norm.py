"""NORM: Knowledge Distillation via N-to-One Representation Matching (Liu et al.; ICLR 2023).

L = sum_i mean over N, C_t, H, W of (E_i - F_t)^2, i = 1..r, with the teacher's last map F_t
(N, C_t, H, W) and E = (E_1, ..., E_r) (N, r C_t, H, W) what a linear module inside the student
makes of its last map F_s (N, C_s, H, W): E = BN(A F_s), and what the student goes on with is
F_s + BN(B E), with 1x1 convolutions A (r C_t, C_s) and B (C_s, r C_t) without bias and no
activation. So every r-th of the channels is to be the whole of the teacher's map. The paper calls
r = `copies` N, and the code sums over them, as here. `residual: false` is its "plain" module,
BN(B E) alone.

Module, global pooling and the student's own classifier are linear, so what ships is merged as the
paper has it: the student's architecture with another weight and bias of its classifier, not a
parameter more. (Dropout between pooling and classifier is left out from the start.)

Hard labels and soft targets see logits of either network that are normalised over the classes:
s (z - mean) / sqrt(var + 1e-7), with the biased variance and s = `logit_scale`; the gradient is
below 3163 s. What ships gives the raw logits: the same classes, but how sure they sound was not
trained.

Taps: last map of both, as the pooling reads it. Where the maps differ in size the larger is
max-pooled, as in the code for whole ratios. r = 8, s = 2.5 and a weight of 1 are those of the
authors' scripts (OSVAI/NORM). There the weight of CE is the best of 0.0625, 0.125, 0.25, 0.5 for
each pair, and 0.1 in the README's command for resnet32x4 -> resnet8x4, as here in both protocols.
NORM+KD is `kd: 1` beside it, which `simkd` has; the authors do not give their weight. Their wrn
students have the module before the last batch norm and ReLU, where no classifier can take it in;
their shufflenets add the image in place of the map, which fails.

`schedule` is a factor of L by the epoch, which the code always has: on `cifar` 0.1 in the first 10
of 240 epochs, 0.5 to 20, 1 to 180, 0.5 to 210, then 0.1; on `imagenet` 0.1 in the first 5 of 100,
0.5 to 15, 0.9 to 60, 0.5 to 80, then 0.1. Of other numbers of epochs it takes the same shares.
`constant` is without it. NORM+CRD is `norm_crd`.

Paper (Table 1, mean, as in the README of its repository): resnet32x4 -> resnet8x4 on CIFAR-100
76.49, with KD 76.98, with the plain module 76.76.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, layer_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from compress.data.batch import Batch
from compress.methods.contract import (
    HardLoss,
    LossWeights,
    Method,
    MethodContext,
    SoftLoss,
    Views,
    first,
    last_map,
    last_maps,
    logits_of,
    require_plain_pooling,
)
from compress.methods.simkd_v import Merged, merge_layers
from compress.precision import in_float32
from compress.taps import Tapped, Taps, encoder_until

Schedule = Literal["cifar", "imagenet", "constant"]
# Epochs of the whole, and until which of them L has which factor.
SCHEDULES: Mapping[Schedule, tuple[int, Mapping[int, float]]] = {
    "cifar": (240, {10: 0.1, 20: 0.5, 180: 1.0, 210: 0.5, 240: 0.1}),
    "imagenet": (100, {5: 0.1, 15: 0.5, 60: 0.9, 80: 0.5, 100: 0.1}),
    "constant": (1, {1: 1.0}),
}
_EPSILON = 1e-7


@in_float32
def norm_loss(expanded: Tensor, teacher_map: Tensor) -> Tensor:
    """Sum over the copies of their mean squared differences from the teacher's map.

    Args:
        expanded: E, (N, r C_t, H, W).
        teacher_map: F_t, (N, C_t, H', W'); the larger map is max-pooled to the size of the other.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where each copy is the teacher's map.
    """
    size = [min(*pair) for pair in zip(expanded.shape[2:], teacher_map.shape[2:], strict=True)]
    expanded, teacher_map = (
        maps if [*maps.shape[2:]] == size else adaptive_max_pool2d(maps, size)
        for maps in (expanded, teacher_map)
    )
    copies = expanded.reshape(len(expanded), -1, *teacher_map.shape[1:])
    return copies.shape[1] * (copies - teacher_map[:, None]).square().mean()


@in_float32
def normalised_logits(logits: Tensor, *, scale: float = 2.5) -> Tensor:
    """Logits (N, K) of mean 0 and deviation `scale` over the classes, in float32 or wider."""
    return scale * layer_norm(logits, logits.shape[-1:], eps=_EPSILON)


class LinearModule(nn.Module):
    """Student map F_s (N, C_s, H, W) -> E (N, r C_t, H, W), and the map that takes its place."""

    def __init__(self, channels: int, inner: int, *, residual: bool) -> None:
        super().__init__()
        self.expand = _pointwise(channels, inner)
        self.contract = _pointwise(inner, channels)
        self.residual = residual

    def forward(self, student_map: Tensor) -> tuple[Tensor, Tensor]:
        expanded = self.expand(student_map)
        contracted = self.contract(expanded)
        return expanded, student_map + contracted if self.residual else contracted

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """What it does to a pixel in eval mode: (N, C_s) -> (N, C_s), in float64."""
        expand, contract = (
            fuse_conv_bn_eval(*copy.deepcopy(layer).double().eval())
            for layer in (self.expand, self.contract)
        )
        inner = contract.weight.flatten(1)
        linear = nn.Linear(inner.shape[0], inner.shape[0]).to(inner)
        linear.weight.copy_(inner @ expand.weight.flatten(1))
        linear.bias.copy_(inner @ expand.bias + contract.bias)
        if self.residual:
            linear.weight.diagonal().add_(1)
        return linear


def _pointwise(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class Transformed(nn.Module):
    """Encoder, linear module and classifier: images (N, 3, H, W) -> logits (N, K)."""

    def __init__(self, encoder: nn.Module, transform: LinearModule, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.transform = transform
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        _, transformed = self.transform(self.encoder(images))
        logits: Tensor = self.classifier(self.avgpool(transformed).flatten(1))
        return logits


class NORM(Method):
    """A linear module before the student's pooling, and normalised logits."""

    reads_classifier = True
    student_taps = ("last_map",)
    teacher_taps: Sequence[str] = ("last_map",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=0.1, kd=0, method=1),
        "simkd": LossWeights(ce=0.1, kd=1, method=1),
    }

    def __init__(
        self,
        context: MethodContext,
        *,
        copies: int = 8,
        residual: bool = True,
        logit_scale: float = 2.5,
        schedule: Schedule = "cifar",
    ) -> None:
        super().__init__(context)
        student_map, teacher_map = last_maps(context)
        if context.student.classifier is None:
            raise ValueError("the method ships the student's linear classifier; it has none")
        require_plain_pooling(context.student, "student")
        if copies < 1:
            raise ValueError(f"copies is at least 1, got {copies}")
        if logit_scale <= 0:
            raise ValueError(f"logit_scale is above 0, got {logit_scale}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule is {', '.join(SCHEDULES)}, got {schedule}")
        self.logit_scale = logit_scale
        self.schedule: Schedule = schedule
        self.last_map, self.classifier_path = student_map, context.student.classifier
        self.transform = LinearModule(
            student_map.channels, copies * teacher_map.channels, residual=residual
        )
        self._student: Tapped | None = None

    def bind(self, student: Tapped) -> None:
        """See `Method.bind`."""
        self._student = student  # no module: registered here, the student would be saved twice

    def extend(self, student: Taps) -> Taps:
        """Add `expanded`, E; `pooled` becomes the mean of the map behind the module."""
        expanded, transformed = self.transform(last_map([student]))
        return Taps(student, expanded=expanded, pooled=transformed.mean((2, 3)))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `norm`."""
        loss = norm_loss(first(student).tensor("expanded"), last_map(teachers[0]))
        return {"norm": self.factor(batch) * loss}

    def factor(self, batch: Batch) -> float:
        """That of the term in a batch's epoch."""
        whole, factors = SCHEDULES[self.schedule]
        done = batch.epoch * whole
        return next(f for end, f in factors.items() if done < end * self.context.epochs)

    def hard_loss(self, student: Views, batch: Batch, loss: HardLoss) -> Tensor:
        """CE of the normalised logits."""
        return loss(self._normalised(self.logits(first(student))), batch.labels)

    def soft_loss(self, student: Views, teachers: Sequence[Views], loss: SoftLoss) -> Tensor:
        """KD of the normalised logits of both."""
        own, known = self.logits(first(student)), logits_of(first(teachers[0]))
        return loss(self._normalised(own), self._normalised(known))

    def _normalised(self, logits: Tensor) -> Tensor:
        return normalised_logits(logits, scale=self.logit_scale)

    def logits(self, student: Taps) -> Tensor:
        """The raw ones of the student's classifier behind the module, see `Method.logits`."""
        assert self._student is not None
        logits: Tensor = self._classifier(self._student.network)(student.tensor("pooled"))
        return logits

    def deploy(self, student: nn.Module) -> nn.Module:
        """The student with the module as it learns, see `Method.deploy`."""
        encoder = encoder_until(student, self.last_map)
        return Transformed(encoder, self.transform, self._classifier(student))

    def ship(self, student: nn.Module) -> nn.Module:
        """The encoder, and module and classifier in one layer, see `Method.ship`."""
        classifier = self._classifier(student)
        merged = merge_layers([self.transform.merged()], [classifier]).to(classifier.weight)
        return Merged(encoder_until(student, self.last_map), merged)

    def _classifier(self, student: nn.Module) -> nn.Linear:
        classifier = student.get_submodule(self.classifier_path)
        assert isinstance(classifier, nn.Linear)
        return classifier
