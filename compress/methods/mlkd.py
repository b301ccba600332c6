"""MLKD: Multi-level Logit Distillation (Jin, Wang, Lin; CVPR 2023).

Each image is seen twice, as the recipe augments it (weak) and by RandAugment (strong, see
`data.rand_augment`). With p_T = softmax(z / T) (N, K) of teacher (p) and student (q), for each T of
`temperatures`:

* instance: T^2 mean_n KL(p_n || q_n), of both views;
* class: sum_kl ((p' p - q' q)_kl)^2 / K, with the K x K Gram matrices of the weak view;
* batch: sum_nm ((p p' - q q')_nm)^2 / N, with the N x N ones of the weak view.

Masks leave out what the teacher is sure of in the weak view at T = 1: m_n = 1 where its largest
prediction is at most the median of the batch, m_k = 1 where its mass on class k is at most the
median of the classes. L is the sum of the three over T, beside CE of both views. `masks` says how
they are applied:

* `released`, the code's form and its tables': m multiplies terms that are already sums or means, so
  that it is a factor, mean m_n or mean m_k, near a half, of all weak terms; the strong view has
  instance terms without it, in which all but the first three temperatures read the weak view.
* `paper`: m_n selects the rows of the instance terms of both views (mean over all N) and of the
  batch Gram, m_k the rows of the class Gram, and every temperature reads its own view.

Taps: logits of two views; labels are read by CE alone. Temperatures 4, 3, 5, 2, 6 and weights 0.1
CE and 0.9 of L are those of Jin-Ying/Multi-Level-Logit-Distillation, in both protocols: CE is the
sum over the views there, so it is here. Its learning rate is 0.025 (0.01 for MobileNet and
ShuffleNet), its length 240 epochs for six of its pairs, 480 for three and 960 for two. The teacher
sees both views. Several teachers are refused.

`standardize` is Logit Standardization (Sun et al.; CVPR 2024): instance terms read (z - mean) / std
over the classes; the published weights are then 0.1 CE and 9 L, with 2 in place of the first
temperature unless `temperatures` says otherwise.

Paper (README of sunshangquan/logit-standardization-KD): resnet32x4 -> resnet8x4 on CIFAR-100 77.08,
with standardized logits 78.28.
Measured here: benchmarks/results/more_methods_cpu.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from compress.data.batch import Batch
from compress.methods.blocks.logits import needs_of_standardized, standardized
from compress.methods.contract import (
    HardLoss,
    LossWeights,
    Method,
    MethodContext,
    Needs,
    View,
    Views,
    logits_of,
    only_teacher,
)
from compress.precision import in_float32

Masks = Literal["released", "paper"]
TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)
STANDARDIZED_TEMPERATURES = (2.0, *TEMPERATURES[1:])
_STRONG = 3  # temperatures of the strong view, as released


@in_float32
def mlkd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    masks: Masks = "released",
    standardize: bool = False,
) -> Tensor:
    """L of a batch.

    Args:
        student: logits (N, K) of the weak and the strong view.
        teacher: logits (N, K) of both.
        temperatures: T > 0 each.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where the logits are equal.
    """
    images, classes = _masks(teacher[0])
    factors = (images.mean(), classes.mean())
    own, known = ((map(standardized, z) if standardize else z) for z in (student, teacher))
    weak, strong = zip(own, known, strict=True)
    every = torch.ones_like(images)
    total = student[0].new_zeros(())
    for number, temperature in enumerate(temperatures):
        grams = _grams(student[0], teacher[0], temperature)
        if masks == "paper":
            total = total + _instances(*weak, temperature, images)
            total = total + _instances(*strong, temperature, images)
            total = total + _apart(grams[0], images) + _apart(grams[1], classes)
        else:
            total = total + factors[0] * _instances(*weak, temperature, every)
            total = total + _instances(*(strong if number < _STRONG else weak), temperature, every)
            total = total + factors[0] * _apart(grams[0]) + factors[1] * _apart(grams[1])
    return total


@torch.no_grad()
def _masks(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """m_n (N,) and m_k (K,), 0 or 1."""
    predictions = teacher_logits.softmax(1)
    sure, mass = predictions.amax(1), predictions.sum(0)
    images, classes = ((v <= v.quantile(0.5)).to(v.dtype) for v in (sure, mass))
    return images, classes


def _instances(student: Tensor, teacher: Tensor, temperature: float, chosen: Tensor) -> Tensor:
    own = (student / temperature).log_softmax(1)
    known = (teacher / temperature).log_softmax(1)
    rows = kl_div(own, known, reduction="none", log_target=True).sum(1)
    return temperature**2 * (rows * chosen).mean()


def _grams(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Differences of the Gram matrices of images (N, N) and of classes (K, K)."""
    own, known = ((logits / temperature).softmax(1) for logits in (student, teacher))
    return known @ known.t() - own @ own.t(), known.t() @ known - own.t() @ own


def _apart(differences: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Squares, summed over the chosen rows and over the number of rows."""
    rows = differences.square().sum(1)
    return (rows if chosen is None else rows * chosen).sum() / len(rows)


class MLKD(Method):
    """Instances, classes and batches of predictions, at several temperatures and in two views."""

    views = (View(), View(augment="rand_augment"))
    batch_coupled = True
    is_soft_term = True
    student_taps = ("logits",)
    teacher_taps = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = dict.fromkeys(
        ("crd", "simkd"), LossWeights(ce=0.1, kd=0, method=0.9)
    )

    def __init__(
        self,
        context: MethodContext,
        *,
        temperatures: list[float] | None = None,
        masks: Masks = "released",
        standardize: bool = False,
    ) -> None:
        super().__init__(context)
        only_teacher(context)
        usual = STANDARDIZED_TEMPERATURES if standardize else TEMPERATURES
        self.temperatures = usual if temperatures is None else tuple(temperatures)
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures are one or more above 0, got {temperatures}")
        if masks not in ("released", "paper"):
            raise ValueError(f"masks is released or paper, got {masks}")
        self.masks: Masks = masks
        self.standardize = standardize

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`: standardized logits have weights of their own."""
        weights = LossWeights(ce=0.1, kd=0, method=9)
        return needs_of_standardized(super().needs(arguments), arguments, weights)

    def hard_loss(self, student: Views, batch: Batch, loss: HardLoss) -> Tensor:
        """The sum over both views."""
        weak, strong = (loss(logits, batch.labels) for logits in _of_views(student))
        return weak + strong

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `mlkd`."""
        loss = mlkd_loss(
            _of_views(student),
            _of_views(teachers[0]),
            temperatures=self.temperatures,
            masks=self.masks,
            standardize=self.standardize,
        )
        return {"mlkd": loss}


def _of_views(views: Views) -> list[Tensor]:
    return [logits_of(taps) for taps in views if taps is not None]
