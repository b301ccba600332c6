"""Directions of vectors whose lengths may vanish, with a gradient that stays bounded."""

import torch
from torch import Tensor

# A direction turns by 1 / length: below this share of the mean length it fades out.
SMALLEST_SHARE = 1e-3


def fading(lengths: Tensor, mean: Tensor) -> Tensor:
    """Factors of the unit vectors of vectors with these lengths, so that short ones fade out.

    A unit vector x / |x| has the gradient 1 / |x| and jumps where x passes 0, as it does for the
    zero features of a dead unit or for two equal images. Times (|x| / (s mean))^2 below the share
    s = 1e-3 of the mean length it is continuous, its gradient is at most 2 / (s mean), and both are
    0 where x is 0. From that length on the factor is exactly 1 and changes no value or gradient.

    Args:
        lengths: |x| >= 0, of any shape.
        mean: a scalar, taken as a constant.
    """
    shortest = (SMALLEST_SHARE * mean.detach()).clamp(min=torch.finfo(lengths.dtype).tiny)
    return (lengths / shortest).clamp(max=1).square()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (N, D) over their lengths; those that are short beside the mean one fade out."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    tiny = torch.finfo(rows.dtype).tiny
    return rows / lengths.clamp(min=tiny) * fading(lengths, lengths.mean())
