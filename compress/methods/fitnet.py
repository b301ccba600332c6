"""FitNet: FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015).

L = mean over N, C_t, H, W of (R(S) - T)^2, with the maps S (N, C_s, ...) and T (N, C_t, ...) of
one stage of student and teacher. The regressor R is a convolution that meets the teacher's width
and size, batch norm and ReLU; it trains with the student and does not ship. Sizes that the
convolution does not meet are met by average-pooling the larger of R(S) and T; see
`compress.methods.blocks.feature_maps.MapRegressor`.

Taps: stage `hint` of both, counted from 1 at the fine end. hint = 2 as in the CRD repository (its
default index into [stem, stages..., pooled]); the SimKD repository has 1. Weight 100 as there. The
paper trains the lower half of the student on the hint first and then the whole on KD; both
repositories, as here, train once on all terms. In the CRD repository a student map smaller than
the teacher's other than by half fails, a larger one other than by 2 meets a convolution without
padding of 1 + H_s - H_t pixels.

Paper (CRD Table 1, last epoch): resnet32x4 -> resnet8x4 on CIFAR-100 73.50. SimKD Table 1, where
KD stands beside it, best on test: 74.32 +- 0.08.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import mse_loss

from compress.data.batch import Batch
from compress.methods.blocks.feature_maps import MapRegressor, pool_to_smaller, stage_pairs
from compress.methods.contract import LossWeights, Method, MethodContext, Views, published, stages
from compress.precision import in_float32


@in_float32
def fitnet_loss(regressed: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of two maps, the larger pooled to the smaller.

    Args:
        regressed: R(S), (N, C_t, H, W).
        teacher_map: T, (N, C_t, H', W').

    Returns:
        A scalar >= 0 in float32 or wider, mean over every element.
    """
    return mse_loss(*pool_to_smaller(regressed, teacher_map))


class FitNet(Method):
    """A regressor from the student's hint stage to the teacher's."""

    dense = True
    student_taps = ("stages",)
    teacher_taps = ("stages",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(100)

    def __init__(self, context: MethodContext, *, hint: int = 2) -> None:
        super().__init__(context)
        pairs = stage_pairs(context)
        if not 1 <= hint <= len(pairs):
            raise ValueError(
                f"hint is a stage that both networks have, 1 to {len(pairs)} here, got {hint}"
            )
        self.hint = hint
        self.regressor = MapRegressor(*pairs[hint - 1])

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `fitnet`."""
        regressed = self.regressor(stages(student)[self.hint - 1])
        return {"fitnet": fitnet_loss(regressed, stages(teachers[0])[self.hint - 1])}
