"""VID: Variational Information Distillation for Knowledge Transfer (Ahn et al., CVPR 2019).

L = sum_l mean over N, C_t, H, W of 0.5 ((m_l(F_s^l) - F_t^l)^2 / v_l + log v_l), with stage maps
F_s^l (N, C_s, H, W) and F_t^l (N, C_t, H, W) of student and teacher. m_l is the mean of a Gaussian
that the student's map predicts for the teacher's: conv 1x1 C_s -> C_t, ReLU, conv 1x1 C_t -> C_t,
ReLU, conv 1x1 C_t -> C_t, none with bias. v_l (C_t,) is its variance, one trained number per
channel: v = softplus(r) + e, with r the `log_scale`, e the `minimum_variance`. L is below 0 where
the variances are small, and may stay so.

Taps: stage maps of both, the l-th beside the l-th; where they differ in size the larger is
average-pooled, the student's before m_l. Variances start at 5 and stay above e = 1e-5, the
constants of the authors' code as it stands in the CRD repository, whose softplus log(1 + exp(r))
overflows where the one here does not. m_l and r learn with the student's settings, weight decay
included, as there. Weight: 1 in either protocol.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 73.09; with CE + KD (SimKD
Table 1, best on test) 74.55 +- 0.10.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import pool_to_smaller, stage_pairs, unpaired_stages
from compress.methods.contract import LossWeights, Method, MethodContext, Views, published, stages
from compress.precision import in_float32


@in_float32
def vid_loss(
    mean: Tensor, teacher_map: Tensor, log_scale: Tensor, minimum_variance: float
) -> Tensor:
    """Negative log-likelihood of a map under a Gaussian, up to the constant log(2 pi) / 2.

    Args:
        mean: m(F_s), (N, C_t, H, W).
        teacher_map: F_t, (N, C_t, H, W).
        log_scale: r, (C_t,); the variance is softplus(r) + `minimum_variance`.

    Returns:
        A scalar in float32 or wider, mean over every element; it may be negative.
    """
    variance = (softplus(log_scale) + minimum_variance).view(1, -1, 1, 1)
    return 0.5 * ((mean - teacher_map).square() / variance + variance.log()).mean()


class Prediction(nn.Module):
    """A Gaussian for a teacher map given a student map: two maps -> their `vid_loss`."""

    def __init__(
        self, channels_in: int, channels_out: int, variance: float, minimum_variance: float
    ) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 1, bias=False),
        )
        # The inverse of softplus, log(exp(x) - 1), written so that no x overflows.
        above = variance - minimum_variance
        inverse = above + math.log(-math.expm1(-above))
        self.log_scale = nn.Parameter(torch.full((channels_out,), inverse))
        self.minimum_variance = minimum_variance

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        own, target = pool_to_smaller(student_map, teacher_map)
        loss: Tensor = vid_loss(self.mean(own), target, self.log_scale, self.minimum_variance)
        return loss


class VID(Method):
    """A Gaussian per pair of stages, of which mean and variance are trained."""

    dense = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self,
        context: MethodContext,
        *,
        initial_variance: float = 5.0,
        minimum_variance: float = 1e-5,
    ) -> None:
        super().__init__(context)
        if not 0 < minimum_variance < initial_variance < math.inf:
            raise ValueError(
                "minimum_variance is above 0 and initial_variance above it, "
                f"got {minimum_variance} and {initial_variance}"
            )
        self.predictions = nn.ModuleList(
            Prediction(s.channels, t.channels, initial_variance, minimum_variance)
            for s, t in stage_pairs(context)
        )

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `vid`."""
        pairs = zip(stages(student), stages(teachers[0]), strict=False)
        terms = [
            prediction(*pair) for prediction, pair in zip(self.predictions, pairs, strict=True)
        ]
        return {"vid": torch.stack(terms).sum()}

    def notes(self) -> list[str]:
        """See `Method.notes`."""
        return unpaired_stages(self.context)
