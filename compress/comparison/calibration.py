"""Calibration of a classifier: whether it is right as often as its confidence says.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: images are sorted into M bins of
equal width by the probability of the predicted class, (m-1)/M < confidence <= m/M, and

    ECE = sum over bins of n_m / N * |accuracy_m - confidence_m|

where n_m are the images of bin m, accuracy_m the share of them that is right and confidence_m their
mean confidence. An empty bin adds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # as Guo et al.


@dataclass(frozen=True)
class Bin:
    """Images of similar confidence: how many, their mean confidence, the share that is right."""

    images: int
    confidence: float
    accuracy: float


def reliability(
    confidence: NDArray[Any], correct: NDArray[np.bool_], *, bins: int = BINS
) -> list[Bin]:
    """The bins that hold images, by rising confidence.

    Args:
        confidence: (N,), probability of the predicted class, in [0, 1].
        correct: (N,), whether that class is the true one.
        bins: how many bins of equal width [0, 1] is divided into.
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    return [
        Bin(
            int((place == number).sum()),
            float(confidence[place == number].mean(dtype=np.float64)),
            float(correct[place == number].mean()),
        )
        for number in np.unique(place)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """ECE of the bins of `reliability`, in [0, 1]."""
    total = sum(one.images for one in bins)
    return sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / total
