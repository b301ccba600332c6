"""SimKD_v: SimKD on pooled vectors, whose parts are merged (Chen et al., CVPR 2022, section 4.4).

L = (1/m) sum_i mean over N, C_i of (A_i f_s + a_i - f_i)^2, with the pooled vectors f_s (N, C_s) of
the student and f_i (N, C_i) of m teachers and a linear projector A_i (C_i, C_s), a_i (C_i,) for
each. With the teachers' classifiers W_i (K, C_i), b_i (K,), the prediction is the mean of their
logits, (1/m) sum_i (W_i (A_i f_s + a_i) + b_i) = W f_s + b, which is one linear layer,
W = (1/m) sum_i W_i A_i (K, C_s) and b = (1/m) sum_i (W_i a_i + b_i). What ships is the encoder and
that layer in place of the student's own: not one parameter more than the student has.

Taps: pooled vectors. The paper describes it in two sentences and prints its results for several
teachers; there is no released code. Here a projector has a bias and no batch norm, the losses are
averaged over the teachers, and they are means over every element, as SimKD's code has it. Loss
weights: 0 CE, 0 KD, 1, in either protocol. It takes one teacher, too.

Paper (Table 6, best on test): three resnet32x4 -> shufflenetv2 on CIFAR-100 77.43 +- 0.21.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from compress.data.batch import Batch
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    first,
    pooled,
    pooled_widths,
    require_plain_pooling,
)
from compress.methods.simkd import SimKD, combine_logits, copy_classifier
from compress.precision import in_float32
from compress.taps import Taps, encoder_until


@in_float32
def simkd_v_loss(projected: Sequence[Tensor], teacher_pooled: Sequence[Tensor]) -> Tensor:
    """Mean over the teachers of the mean squared difference of two vectors.

    Args:
        projected: A_i f_s + a_i, (N, C_i) each.
        teacher_pooled: f_i, (N, C_i) each.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    pairs = zip(projected, teacher_pooled, strict=True)
    return torch.stack([mse_loss(own, known) for own, known in pairs]).mean()


@torch.no_grad()
def merge_layers(projectors: Sequence[nn.Linear], classifiers: Sequence[nn.Linear]) -> nn.Linear:
    """The linear layer W f + b that is the mean of what the classifiers say of the projections.

    Summed in float64; the result is of the projectors' type and device, and shares nothing with
    them.
    """
    weights, biases = [], []
    for projector, classifier in zip(projectors, classifiers, strict=True):
        reading = classifier.weight.double()
        weights.append(reading @ projector.weight.double())
        bias = reading @ projector.bias.double()
        biases.append(bias if classifier.bias is None else bias + classifier.bias.double())
    weight, bias = torch.stack(weights).mean(0), torch.stack(biases).mean(0)
    own = projectors[0].weight
    merged = nn.Linear(weight.shape[1], weight.shape[0], device=own.device, dtype=own.dtype)
    merged.weight.copy_(weight)
    merged.bias.copy_(bias)
    return merged


class Separate(nn.Module):
    """Encoder, a projector and a classifier for each teacher: images -> mean of logits (N, K)."""

    def __init__(
        self, encoder: nn.Module, projectors: nn.ModuleList, classifiers: nn.ModuleList
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.projectors = projectors
        self.classifiers = classifiers

    def forward(self, images: Tensor) -> Tensor:
        features = self.avgpool(self.encoder(images)).flatten(1)
        pairs = zip(self.projectors, self.classifiers, strict=True)
        return combine_logits([c(p(features)) for p, c in pairs], "logits")


class Merged(nn.Module):
    """Encoder and what reads its pooled map: images (N, 3, H, W) -> logits (N, K)."""

    def __init__(self, encoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.encoder(images)).flatten(1))
        return logits


class SimKDV(Method):
    """Linear projectors and frozen copies of the teachers' classifiers."""

    reads_classifier = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = SimKD.protocols

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        widths = [pooled_widths(one) for one in context.for_each_teacher()]
        last = context.student.last_map
        if last is None:
            raise ValueError(
                "the method ships a student that ends in global average pooling and a linear "
                "layer; this one does not"
            )
        require_plain_pooling(context.student, "student")
        self.last_map = last
        self.projectors = nn.ModuleList(nn.Linear(*pair) for pair in widths)
        self.classifiers = nn.ModuleList()
        for teacher in context.teachers:
            assert teacher.weight is not None
            self.classifiers.append(copy_classifier(teacher.weight, teacher.bias))

    def extend(self, student: Taps) -> Taps:
        """Add `projected`, A_i f_s + a_i for each teacher."""
        own = pooled([student])
        return Taps(student, projected=[projector(own) for projector in self.projectors])

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `simkd_v`."""
        projected = first(student).tensors("projected")
        return {"simkd_v": simkd_v_loss(projected, [pooled(teacher) for teacher in teachers])}

    def logits(self, student: Taps) -> Tensor:
        """See `Method.logits`."""
        pairs = zip(self.classifiers, student.tensors("projected"), strict=True)
        return combine_logits([classifier(one) for classifier, one in pairs], "logits")

    def deploy(self, student: nn.Module) -> nn.Module:
        """The parts as they learn, see `Method.deploy`."""
        encoder = encoder_until(student, self.last_map)
        return Separate(encoder, self.projectors, self.classifiers)

    def ship(self, student: nn.Module) -> nn.Module:
        """The encoder and the merged layer, see `Method.ship`."""
        encoder = encoder_until(student, self.last_map)
        return Merged(encoder, merge_layers([*self.projectors], [*self.classifiers]))
