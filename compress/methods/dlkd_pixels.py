"""DLKD for segmentation: alignment and correlation of pixels (Ding et al., IEEE TNNLS 2022, VI-C).

The paper distils "pixel-level knowledge alignment and correlation in the feature space" and prints
neither formula nor settings, and no code is released: what stands here takes its equations for
images (see `dlkd.py`) to pixels. With last maps f_s (N, C_s, h, w) and f_t (N, C_t, h, w),
L = 10 L_align + 20 L_corr:

* L_align = mean over images and pixels of 2 - 2 cos(h(f_s), f_t), h a head of 1x1 convolutions: to
  16 C_t channels, batch norm, ReLU, to C_t.
* L_corr = mean over images and pixels i of KL(p_t(i) || p_s(i)), p(i) the softmax over the other
  pixels j of the same image of cos(f(i), f(j)) / 0.5; the student's through a head of its own (to
  C_s, batch norm, ReLU, to C_s).

Correlations are quadratic in the pixels: maps are averaged before to `grid` x `grid` cells where
they are larger (32: a million cosines an image). No term turns images or reads labels. The weights
10 and 20 are those of the text.

Taps: last maps of both. The student's maps are enlarged to the teacher's size.

Paper (Table IV, Cityscapes val, PSPNet-R101 -> PSPNet-R18): 75.73; student alone 69.10. Measured
here: benchmarks/results/segmentation.md.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, kl_div, normalize

from compress.data.batch import Batch
from compress.methods.contract import (
    Method,
    MethodContext,
    Views,
    enlarged_to,
    first,
    last_map,
    last_maps,
)
from compress.precision import in_float32
from compress.taps import Taps


@in_float32
def dlkd_pixels_align_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean over images and pixels of 2 - 2 cos; maps (N, C, h, w): a scalar from 0 to 4."""
    return (2 - 2 * cosine_similarity(student_map, teacher_map, dim=1)).mean()


@in_float32
def dlkd_pixels_correlation_loss(
    student_map: Tensor, teacher_map: Tensor, *, temperature: float = 0.5
) -> Tensor:
    """Mean KL of each pixel's distribution over the other pixels of its image.

    Args:
        student_map: (N, C_s, h, w).
        teacher_map: (N, C_t, h, w).
        temperature: of the softmax of cosines.
    """
    log_q, log_p = (_relations(maps, temperature) for maps in (student_map, teacher_map))
    images, pixels, _ = log_q.shape
    return kl_div(log_q, log_p, reduction="sum", log_target=True) / (images * pixels)


def dlkd_pixels_loss(
    aligned: Tensor,
    correlated: Tensor,
    teacher_map: Tensor,
    *,
    align_weight: float = 10.0,
    correlation_weight: float = 20.0,
) -> Tensor:
    """Both terms of what two heads make of the student's map.

    Args:
        aligned: h(f_s), (N, C_t, h, w).
        correlated: (N, C_s, h, w).
        teacher_map: f_t, (N, C_t, h, w).
    """
    align = dlkd_pixels_align_loss(aligned, teacher_map)
    return align_weight * align + correlation_weight * dlkd_pixels_correlation_loss(
        correlated, teacher_map
    )


def _relations(maps: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (N, P, P - 1) of the other pixels for each pixel."""
    unit = normalize(maps.flatten(2), dim=1)
    cosines = unit.transpose(1, 2) @ unit / temperature
    images, pixels, _ = cosines.shape
    # Row by row without the first, every (pixels + 1)th that follows is on the diagonal.
    rest = cosines.flatten(1)[:, 1:].view(images, pixels - 1, pixels + 1)[:, :, :-1]
    return rest.reshape(images, pixels, pixels - 1).log_softmax(2)


class DLKDPixels(Method):
    """Alignment and correlation of the pixels of the last map."""

    dense: ClassVar[bool] = True
    images: ClassVar[bool] = False
    student_taps = ("last_map",)
    teacher_taps = ("last_map",)

    def __init__(
        self,
        context: MethodContext,
        *,
        align_weight: float = 10.0,
        correlation_weight: float = 20.0,
        correlation_temperature: float = 0.5,
        hidden_ratio: float = 16.0,
        grid: int = 32,
    ) -> None:
        super().__init__(context)
        student, teacher = last_maps(context)
        if min(align_weight, correlation_weight) < 0 or not align_weight + correlation_weight:
            raise ValueError(
                "align_weight and correlation_weight are at least 0 and not both 0, got "
                f"{align_weight} and {correlation_weight}"
            )
        if correlation_temperature <= 0:
            raise ValueError(f"correlation_temperature is above 0, got {correlation_temperature}")
        if grid < 2:
            raise ValueError(f"grid is 2 or more cells a side, got {grid}")
        hidden = round(hidden_ratio * teacher.channels)
        if hidden < 1:
            raise ValueError(
                f"hidden_ratio leaves no hidden layer: {hidden_ratio} x {teacher.channels}"
            )
        self.align_weight, self.correlation_weight = align_weight, correlation_weight
        self.temperature, self.grid = correlation_temperature, grid
        self.heads = nn.ModuleDict()
        if align_weight:
            self.heads["align"] = _head(student.channels, hidden, teacher.channels)
        if correlation_weight:
            width = student.channels
            self.heads["correlation"] = _head(width, width, width)

    def extend(self, student: Taps) -> Taps:
        """Add what each head makes of the last map, by the name of its term."""
        features = student.tensor("last_map")
        return Taps({**student, **{name: head(features) for name, head in self.heads.items()}})

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `align` and `correlation`, without one of weight 0."""
        target, own, terms = last_map(teachers[0]), first(student), dict[str, Tensor]()
        if self.align_weight:
            loss = dlkd_pixels_align_loss(enlarged_to(own.tensor("align"), target), target)
            terms["align"] = self.align_weight * loss
        if self.correlation_weight:
            maps = enlarged_to(own.tensor("correlation"), target)
            loss = dlkd_pixels_correlation_loss(
                self._cells(maps), self._cells(target), temperature=self.temperature
            )
            terms["correlation"] = self.correlation_weight * loss
        return terms

    def _cells(self, maps: Tensor) -> Tensor:
        """A map averaged to `grid` cells a side where it has more."""
        height, width = (min(self.grid, side) for side in maps.shape[-2:])
        return adaptive_avg_pool2d(maps, (height, width))


def _head(channels: int, hidden: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, width, 1),
    )
