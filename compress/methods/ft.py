"""FT: Paraphrasing Complex Network: Network Compression via Factor Transfer (Kim et al., NIPS 2018)

L = mean over N, H, W of |q(T(F_s)) - q(P(F_t))|, with the last stage maps F_s (N, C_s, H, W) and
F_t (N, C_t, H, W), and q(F) = the mean of F^2 over channels, flattened to (N, H W) and divided by
its norm. The paraphraser P and the translator T are each three 3x3 convolutions with bias, each
followed by LeakyReLU 0.1: C_t -> C_t -> k C_t -> k C_t and C_s -> C_s -> k C_t -> k C_t, T alone
with batch norm before the LeakyReLU. k is the `paraphrase_rate`. Before the student, P is trained
in a phase as the encoder of an autoencoder with the loss mean (D(P(F_t)) - F_t)^2 over every
element, where D is three transposed 3x3 convolutions that mirror P; afterwards it is frozen.

Taps: last stage map of both, whatever their numbers; the larger factor is average-pooled. k = 0.5,
30 epochs for P and the networks are those of the CRD repository, whose list[-2] is that map (in
its WRN the one before the last batch norm and ReLU). `paraphraser_lr` is 0.01 as there for ResNet
and WRN students; for others it takes the student's own, which null asks for. There the student
sits in eval mode in that phase; here it is not run. The FT paper compares whole factors (L1 of
their L2-normalised values); the CRD repository, and this file, compare their mean squares over
channels. Maps of one pixel are refused: q is then 1 and L 0. Weight: 200 in either protocol, as in
the CRD repository's script; the CRD paper's text says 500.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 72.86.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import pool_to_smaller, stage_pairs
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Phase,
    Views,
    published,
    stages,
)
from compress.precision import in_float32


@in_float32
def ft_loss(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """Mean absolute difference of two factors' normalised maps of mean squares.

    Args:
        student_factor: T(F_s), (N, C, H, W).
        teacher_factor: P(F_t), (N, C', H', W'); the larger of the two is average-pooled.

    Returns:
        A scalar >= 0 in float32 or wider, mean over every element.
    """
    own, target = (
        normalize(factor.square().mean(1).flatten(1))
        for factor in pool_to_smaller(student_factor, teacher_factor)
    )
    return (own - target).abs().mean()


@in_float32
def paraphraser_loss(reconstructed: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of D(P(F_t)) and F_t, both (N, C_t, H, W)."""
    return mse_loss(reconstructed, teacher_map)


def _convolutions(
    widths: Sequence[int], *, transposed: bool = False, batch_norm: bool = False
) -> nn.Sequential:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(kind(before, after, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


class FT(Method):
    """Paraphraser of the teacher, trained first and then frozen; translator of the student."""

    dense = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(200)

    def __init__(
        self,
        context: MethodContext,
        *,
        paraphrase_rate: float = 0.5,
        paraphraser_epochs: int = 30,
        paraphraser_lr: float | None = 0.01,
    ) -> None:
        super().__init__(context)
        stage_pairs(context)  # refuses several teachers, and networks without maps
        own, target = context.student.stages[-1], context.teachers[0].taps.stages[-1]
        if min(own.height, target.height) * min(own.width, target.width) == 1:
            raise ValueError(
                "the method compares how the last stage maps spread over their pixels, and one of "
                "them has a single pixel; choose larger images or another pair"
            )
        if not 1 <= target.channels * paraphrase_rate < math.inf:
            raise ValueError(
                f"paraphrase_rate times the teacher's {target.channels} channels is 1 or more, "
                f"got {paraphrase_rate}"
            )
        if paraphraser_epochs < 1:
            raise ValueError(
                f"paraphraser_epochs is 1 or more, as an untrained paraphraser is noise; "
                f"got {paraphraser_epochs}"
            )
        if paraphraser_lr is not None and not 0 < paraphraser_lr < math.inf:
            raise ValueError(
                f"paraphraser_lr is above 0, or null for the student's; got {paraphraser_lr}"
            )
        self.paraphraser_epochs = paraphraser_epochs
        self.paraphraser_lr = paraphraser_lr
        factors = int(target.channels * paraphrase_rate)
        widths = target.channels, target.channels, factors, factors
        self.paraphraser = _convolutions(widths)
        self.decoder = _convolutions(widths[::-1], transposed=True)
        self.translator = _convolutions((own.channels, own.channels, *widths[2:]), batch_norm=True)

    def phases(self) -> list[Phase]:
        """The paraphraser's training; see the module's docstring."""

        def loss(student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
            target = stages(teachers[0])[-1]
            reconstructed = self.decoder(self.paraphraser(target))
            return {"paraphraser": paraphraser_loss(reconstructed, target)}

        parameters = [*self.paraphraser.parameters(), *self.decoder.parameters()]
        return [
            Phase(
                "paraphraser",
                self.paraphraser_epochs,
                parameters,
                loss,
                lr=self.paraphraser_lr,
                student="absent",
            )
        ]

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `ft`."""
        with torch.no_grad():  # no term reaches the paraphraser, so the loop freezes it
            target = self.paraphraser(stages(teachers[0])[-1])
        return {"ft": ft_loss(self.translator(stages(student)[-1]), target)}
