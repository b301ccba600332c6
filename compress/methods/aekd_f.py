"""AE-KD with features: Adaptive Ensemble Knowledge Distillation (Du et al., NeurIPS 2020).

L = v sum_i a_i L_i + w sum_i b_i H_i, the first sum as in `aekd`, H_i = mean over N, C_i, H, W of
(R_i(S) - F_i)^2 with the maps S (N, C_s, ...) and F_i (N, C_i, ...) of one stage of the student and
of teacher i and a regressor R_i (FitNet's) for each teacher, which trains with the student and does
not ship. b are constants and in every step anew those of the shortest mixture, as in `aekd`, but of
the unit vectors h_i / |h_i|, with h_i = mean_n dH_i/dS_n: b_i = c_i / |h_i|, scaled to sum to 1,
where c minimises |sum_i c_i h_i / |h_i||^2 over sum_i c_i = 1, 0 <= c_i <= C.

Taps: logits, and stage `hint` of all, counted from 1 at the fine end; a regressor meets a teacher's
width and size (`compress.methods.blocks.feature_maps.MapRegressor`). v = 0.9, w = 100 and C = 0.6
are the defaults of the code (AnTuo1998/AE-KD 68f490e; w in its README, its command line has 0),
hint = 2 its default layer; the division of h by lengths is always on there, that of the gradients
by the logits off. The features join after one epoch, as in the code. Weights: CE + L in either
protocol; SimKD's table, run by Rorozhl/CA-MKD, has v = 1. The program is solved exactly, see
`aekd`. h is computed by a backward pass through each regressor in every step, and scaled up, which
its direction does not show, so that half precision keeps it.

Paper (SimKD Table 6, best on test): three resnet32x4 -> shufflenetv2 on CIFAR-100 77.24 +- 0.32.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.distributed.collectives import all_reduce
from compress.methods.aekd import AEKD
from compress.methods.blocks.feature_maps import MapRegressor, stage_pairs
from compress.methods.blocks.min_norm import min_norm_weights
from compress.methods.contract import LossWeights, MethodContext, Views, stages
from compress.methods.fitnet import fitnet_loss
from compress.precision import in_float32


@in_float32
def aekd_f_loss(
    regressed: Sequence[Tensor], teacher_maps: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Sum over the teachers of b_i times `fitnet_loss`.

    Args:
        regressed: R_i(S), (N, C_i, H, W) each, of m teachers.
        teacher_maps: F_i, (N, C_i, H', W') each.
        weights: b, (m,), constants.

    Returns:
        A scalar >= 0 in float32 or wider.
    """
    pairs = zip(regressed, teacher_maps, strict=True)
    losses = torch.stack([fitnet_loss(own, known) for own, known in pairs])
    return (weights.to(losses.dtype) * losses).sum()


class AEKDF(AEKD):
    """`AEKD`, and a regressor to one stage of each teacher."""

    student_taps: Sequence[str] = ("logits", "stages")
    teacher_taps: Sequence[str] = ("logits", "stages")
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=1, kd=0, method=1),
        "simkd": LossWeights(ce=1, kd=0, method=1),
    }

    def __init__(
        self,
        context: MethodContext,
        *,
        temperature: float = 4.0,
        tolerance: float = 0.6,
        normalise: bool = False,
        hint: int = 2,
        soft_weight: float = 0.9,
        hint_weight: float = 100.0,
        epochs_without_hint: int = 1,
    ) -> None:
        super().__init__(context, temperature=temperature, tolerance=tolerance, normalise=normalise)
        if epochs_without_hint < 0:
            raise ValueError(f"epochs_without_hint is at least 0, got {epochs_without_hint}")
        every = [stage_pairs(one) for one in context.for_each_teacher()]
        deepest = min(map(len, every))
        if not 1 <= hint <= deepest:
            raise ValueError(
                f"hint is a stage that all networks have, 1 to {deepest} here, got {hint}"
            )
        self.hint = hint
        self.soft_weight = soft_weight
        self.hint_weight = hint_weight
        self.epochs_without_hint = epochs_without_hint
        self.regressors = nn.ModuleList(MapRegressor(*pairs[hint - 1]) for pairs in every)

    def late_parameters(self) -> Sequence[nn.Parameter]:
        """See `Method.late_parameters`."""
        return [*self.regressors.parameters()]

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `aekd` and, once the features have joined, `hint`."""
        terms = {"aekd": self.soft_weight * self.weighted_soft_loss(student, teachers)}
        if batch.epoch >= self.epochs_without_hint:
            terms["hint"] = self.hint_weight * self._hint_loss(student, teachers)
        return terms

    def _hint_loss(self, student: Views, teachers: Sequence[Views]) -> Tensor:
        """sum_i b_i H_i of the own rows, with the weights of all processes' rows."""
        own = stages(student)[self.hint - 1]
        known = [stages(teacher)[self.hint - 1] for teacher in teachers]
        regressed = [regressor(own) for regressor in self.regressors]
        gradients = all_reduce(map_gradients(own, regressed, known))
        weights = min_norm_weights(gradients, self.tolerance, normalised=True)
        return aekd_f_loss(regressed, known, weights)


def map_gradients(
    student_map: Tensor, regressed: Sequence[Tensor], teacher_maps: Sequence[Tensor]
) -> Tensor:
    """The gradients of H_i by S, summed over the batch, up to a common factor.

    Args:
        student_map: S, (N, C_s, H, W), of which `regressed` were computed.
        regressed: R_i(S), (N, C_i, H', W') each, of m teachers.
        teacher_maps: F_i, (N, C_i, H'', W'') each.

    Returns:
        (m, C_s, H, W) in float64; the sum over several processes is that of all their rows.
    """
    scale = student_map.numel()  # a mean over the rows here becomes a sum
    gradients = []
    with torch.autocast(student_map.device.type, enabled=False):
        for own, known in zip(regressed, teacher_maps, strict=True):
            loss = scale * fitnet_loss(own, known)
            (gradient,) = torch.autograd.grad(loss, student_map, retain_graph=True)
            gradients.append(gradient.double().sum(0))
    return torch.stack(gradients)
