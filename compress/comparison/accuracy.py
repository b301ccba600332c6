"""Accuracies on a test set: the standard error of one, and the difference of two.

Networks that were tested on the same images are compared image by image (`paired`), where their
predictions were saved. Without them (runs made before they were) two networks are compared as if
their test sets were independent, which is cautious: the standard error of the difference is the
root of the sum of both squares.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compress.comparison.paired import Interval, compare_correct
from compress.comparison.predictions import Predictions

NOT_DISTINGUISHABLE = "not distinguishable"
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Score:
    """Top-1 of a network on a test set, in percent, the mean over its trainings.

    `predictions` are those of every training by its number, or none where not all were saved. A
    network `is_fixed` that is not trained anew for each of the other's trainings: a teacher.
    """

    top1_percent: float
    test_images: int
    predictions: Mapping[int, Predictions] = field(default_factory=dict)
    is_fixed: bool = False

    @property
    def standard_error(self) -> float:
        """See `standard_error_percent`."""
        return standard_error_percent(self.top1_percent, self.test_images)


@dataclass(frozen=True)
class AccuracyDifference:
    """One top-1 minus another, in percentage points.

    The 95 % interval and the p-value are None where the test images could not be paired; a
    bootstrap of one training each gives an interval alone.
    """

    points: float
    standard_error: float
    interval: Interval | None = None
    p_value: float | None = None

    @property
    def is_paired(self) -> bool:
        """Whether both networks were compared image by image."""
        return self.interval is not None

    @property
    def reading(self) -> str:
        """ "higher" or "lower" where p < 0.05, else "not distinguishable".

        Without a p-value: where the interval does not hold 0; unpaired: where they differ by more
        than two standard errors.
        """
        if self.p_value is not None:
            is_clear = self.p_value < SIGNIFICANCE
        elif self.interval is not None:
            is_clear = self.interval[0] > 0 or self.interval[1] < 0
        else:
            is_clear = abs(self.points) > 2 * self.standard_error
        if not is_clear:
            return NOT_DISTINGUISHABLE
        return "higher" if self.points > 0 else "lower"


def format_p_value(p_value: float) -> str:
    """p = 0.031; p < 0.001."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def standard_error_percent(top1_percent: float, n: int) -> float:
    """Binomial standard error, in percentage points, of an accuracy on n test images.

    sqrt(p (1 - p) / n) for a share p.

    Raises:
        ValueError: the accuracy is outside 0..100 or there is no image.
    """
    if not 0 <= top1_percent <= 100:
        raise ValueError(f"an accuracy is between 0 and 100 percent, got {top1_percent}")
    if n < 1:
        raise ValueError(f"a standard error needs at least one test image, got {n}")
    share = top1_percent / 100
    return 100 * math.sqrt(share * (1 - share) / n)


def compare_scores(first: Score, second: Score) -> AccuracyDifference:
    """First minus second: paired where that can be done, else as of independent test sets."""
    pairs = paired_correct(first, second)
    if pairs is None:
        points = first.top1_percent - second.top1_percent
        error = math.hypot(first.standard_error, second.standard_error)
        return AccuracyDifference(points, error)
    return _in_points(*pairs)


def compare_classes(first: Score, second: Score) -> dict[int, AccuracyDifference]:
    """`compare_scores` on the images of each class; empty where they cannot be paired.

    The p-values are those of each class by itself, see `paired.holm`.
    """
    pairs = paired_correct(first, second)
    if pairs is None:
        return {}
    labels = next(iter(first.predictions.values())).labels
    return {
        int(label): _in_points(*(correct[:, labels == label] for correct in pairs))
        for label in np.unique(labels)
    }


def paired_correct(
    first: Score, second: Score
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which images each got right, two arrays (T, N); row t is of training t of both.

    None where predictions are missing, are of other images, or of different trainings.
    """
    one, other = dict(first.predictions), dict(second.predictions)
    if not one or not other:
        return None
    if first.is_fixed and len(one) == 1:
        one = dict.fromkeys(other, *one.values())
    if second.is_fixed and len(other) == 1:
        other = dict.fromkeys(one, *other.values())
    sample = next(iter(one.values()))
    if one.keys() != other.keys() or not all(
        sample.of_same_images(each) for each in (*one.values(), *other.values())
    ):
        return None
    first_rows, second_rows = (
        np.stack([each[trial].correct for trial in sorted(one)]) for each in (one, other)
    )
    return first_rows, second_rows


def _in_points(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> AccuracyDifference:
    paired = compare_correct(first, second)
    low, high = paired.interval
    return AccuracyDifference(
        100 * paired.difference,
        100 * paired.standard_error,
        (100 * low, 100 * high),
        paired.p_value,
    )
