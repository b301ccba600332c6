"""Correlations between the logits of classes, and how far a student's differ from its teacher's.

CRD (Tian et al., ICLR 2020, Figures 2 and 6) and DCD (its supplement's Figure 4) draw the
difference of the "normalized cross-correlation matrices" of student and teacher logits on the test
set, and say no more of it. Normalised is read as: every class's logit is centred and scaled to
deviation 1 over the test images, which makes the matrix that of Pearson's correlations,

    R[j, k] = sum_i (z[i, j] - m[j]) (z[i, k] - m[k]) / (|z[:, j] - m[j]| |z[:, k] - m[k]|)

of logits z (N, K) with means m (K,) over the N images. R knows neither shift nor scale of a class's
logit. It does change where a number is added to all logits of an image, which softmax does not see.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the largest value: a deviation below that is rounding, and the logit a constant.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class CorrelationDifference:
    """Student's minus teacher's correlations, (K, K) float64, and their size.

    Both numbers are of the pairs of different classes: with itself every class is correlated by 1.
    """

    matrix: Tensor
    mean_absolute: float
    largest_absolute: float


def logit_correlation(logits: Tensor) -> Tensor:
    """Pearson's correlations (K, K), float64, of the columns of logits (N, K).

    A logit that is the same for all images is correlated with none: its row and column are 0.
    """
    values = logits.double()
    centred = values - values.mean(0)
    norms = centred.norm(dim=0)
    is_constant = norms <= _ROUNDING * len(values) ** 0.5 * values.abs().amax(0)
    scaled = torch.where(is_constant, 0.0, centred / norms.masked_fill(is_constant, 1.0))
    return scaled.t() @ scaled


def correlation_difference(student: Tensor, teacher: Tensor) -> CorrelationDifference:
    """The difference of the correlations of logits (N, K) of the same images.

    Raises:
        ValueError: the two are of different shapes, or of fewer than two classes.
    """
    if student.shape != teacher.shape or student.shape[1] < 2:
        raise ValueError(f"logits {tuple(student.shape)} and {tuple(teacher.shape)}")
    matrix = logit_correlation(student) - logit_correlation(teacher)
    between = matrix[~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)].abs()
    return CorrelationDifference(matrix, float(between.mean()), float(between.max()))
