"""CA-MKD: Confidence-Aware Multi-Teacher Knowledge Distillation (Zhang, Chen, Wang; ICASSP 2022).

L = L_p + b L_f of m >= 2 teachers, each sample n weighing teacher i by its confidence:
L_p = (1/(N m)) sum_n sum_i w_ni T^2 KL(p_ni || q_n), L_f = (1/(N m)) sum_n sum_i v_ni MSE_ni, with
p_ni, q_n the predictions of teacher i and the student softened by T, MSE_ni the mean over C_i, H, W
of (R_i(S)_n - F_i,n)^2, S (N, C_s, ...) and F_i (N, C_i, H, W) the last maps, and
w_ni = (1 - softmax_i(CE(z_i, y))_ni) / (m - 1), where CE is each teacher's own cross entropy;
v_ni likewise, with the cross entropy of what teacher i's classifier says of R_i(S)_n, pooled. w and
v sum to 1 over the teachers. R_i is average pooling to the teacher's size (bilinear where the
student's map is smaller), conv 1x1 with bias, batch norm, ReLU; it does not ship.

Taps: logits and last maps. T = 4, b = 50, the weights 1 of CE and L_p, and the features joining
after one epoch are those of the code (Rorozhl/CA-MKD c2f39a9 and its scripts); that both sums are
divided by m is the code's, too. v carries a gradient there, as here; `constant_weights` stops it.
The code pools S for each teacher anew from what it pooled for the one before; here every teacher
gets S itself, which differs where their maps do. It leaves out a last, smaller batch.
Weights: CE + L in either protocol.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    cross_entropy,
    interpolate,
    kl_div,
    linear,
    log_softmax,
)

from compress.data.batch import Batch
from compress.methods.blocks.heads import register_classifier
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Views,
    first,
    last_map,
    last_maps,
    logits_of,
    only_teacher,
    require_plain_pooling,
)
from compress.precision import in_float32


def confidence_weights(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """(1 - softmax_i(CE_i)) / (m - 1): (m, N), summing to 1 over the m >= 2 teachers.

    Args:
        logits: (N, K) each, of m teachers.
        labels: y, (N,).
    """
    losses = torch.stack([cross_entropy(z, labels, reduction="none") for z in logits])
    return (1 - losses.softmax(0)) / (len(losses) - 1)


@in_float32
def ca_mkd_loss(
    student_logits: Tensor, teacher_logits: Sequence[Tensor], labels: Tensor, temperature: float
) -> Tensor:
    """L_p, see the module's docstring.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K) each, of m >= 2 teachers.
        labels: y, (N,).
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    log_q = log_softmax(student_logits / temperature, dim=1)
    log_p = [log_softmax(teacher / temperature, dim=1) for teacher in teacher_logits]
    pairs = [kl_div(log_q, one, reduction="none", log_target=True).sum(1) for one in log_p]
    weights = confidence_weights(teacher_logits, labels)
    return temperature**2 * (weights * torch.stack(pairs)).mean()


@in_float32
def ca_mkd_feature_loss(
    projected: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    classified: Sequence[Tensor],
    labels: Tensor,
    constant_weights: bool = False,
) -> Tensor:
    """L_f, see the module's docstring.

    Args:
        projected: R_i(S), (N, C_i, H, W) each, of m >= 2 teachers.
        teacher_maps: F_i, of the same shapes.
        classified: what the teachers' classifiers say of R_i(S), (N, K) each.
        labels: y, (N,).
        constant_weights: take v as constants.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    weights = confidence_weights(classified, labels)
    pairs = zip(projected, teacher_maps, strict=True)
    differences = torch.stack([(own - known).square().mean((1, 2, 3)) for own, known in pairs])
    return ((weights.detach() if constant_weights else weights) * differences).mean()


class TeacherReader(nn.Module):
    """R_i, whose result a frozen copy of the teacher's classifier reads."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, context: MethodContext) -> None:
        """`context` has this teacher alone."""
        super().__init__()
        own, known = last_maps(context)
        teacher = only_teacher(context)
        if teacher.weight is None:
            raise ValueError("the method reads the teachers' linear classifiers; one has none")
        require_plain_pooling(teacher.taps, "teacher")
        self.connector = nn.Sequential(
            nn.Conv2d(own.channels, known.channels, 1), nn.BatchNorm2d(known.channels), nn.ReLU()
        )
        register_classifier(self, teacher.weight, teacher.bias)

    def forward(self, student_map: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(N, C_s, ...) -> R_i(S) (N, C_i, *size) and its logits (N, K)."""
        projected = self.connector(resize(student_map, size))
        return projected, _classify(projected, self.weight, self.bias)


@in_float32
def _classify(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(maps.mean((2, 3)), weight, bias)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average-pool (N, C, H, W) where it is larger than `size`, enlarge it where it is smaller."""
    shared = min(maps.shape[-2], size[0]), min(maps.shape[-1], size[1])
    if maps.shape[-2:] != shared:
        maps = adaptive_avg_pool2d(maps, shared)
    return maps if shared == size else interpolate(maps, size, mode="bilinear")


class CAMKD(Method):
    """Soft targets and features of several teachers, weighted by what they know of a sample."""

    is_soft_term = True
    reads_classifier = True
    reads_labels = True
    student_taps = ("logits", "last_map")
    teacher_taps = ("logits", "last_map")
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=1, kd=0, method=1),
        "simkd": LossWeights(ce=1, kd=0, method=1),
    }

    def __init__(
        self,
        context: MethodContext,
        *,
        temperature: float = 4.0,
        feature_weight: float = 50.0,
        constant_weights: bool = False,
        epochs_without_features: int = 1,
    ) -> None:
        super().__init__(context)
        if len(context.teachers) < 2:
            raise ValueError(
                "the method weighs teachers against each other and needs two or more, got "
                f"{len(context.teachers)}; list them under `teacher`"
            )
        if temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        if epochs_without_features < 0:
            raise ValueError(
                f"epochs_without_features is at least 0, got {epochs_without_features}"
            )
        self.temperature = temperature
        self.feature_weight = feature_weight
        self.constant_weights = constant_weights
        self.epochs_without_features = epochs_without_features
        self.readers = nn.ModuleList(map(TeacherReader, context.for_each_teacher()))

    def late_parameters(self) -> Sequence[nn.Parameter]:
        """See `Method.late_parameters`."""
        return [*self.readers.parameters()]

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `ca_mkd` and, once the features have joined, `features`."""
        targets = [logits_of(first(teacher)) for teacher in teachers]
        own = self.logits(first(student))
        terms = {"ca_mkd": ca_mkd_loss(own, targets, batch.labels, self.temperature)}
        if batch.epoch >= self.epochs_without_features and self.feature_weight:
            terms["features"] = self.feature_weight * self._feature_loss(student, teachers, batch)
        return terms

    def _feature_loss(self, student: Views, teachers: Sequence[Views], batch: Batch) -> Tensor:
        own, maps = last_map(student), [last_map(teacher) for teacher in teachers]
        pairs = zip(self.readers, maps, strict=True)
        read = [reader(own, known.shape[-2:]) for reader, known in pairs]
        projected, classified = ([one[i] for one in read] for i in range(2))
        return ca_mkd_feature_loss(projected, maps, classified, batch.labels, self.constant_weights)
