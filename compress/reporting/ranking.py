"""Standard errors of test accuracies, the test of a difference, and the recommended student.

Of n independent test images a share p is classified correctly; the standard error of that share
is sqrt(p (1 - p) / n) (binomial). Two networks are compared as if their test sets were
independent: the standard error of the difference is the root of the sum of both squares. They
share the test images, which usually makes the true error smaller, so the reading is cautious.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LAST_EPOCH = "last epoch"
SELECTED = "epoch chosen on validation"
NOT_DISTINGUISHABLE = "not distinguishable"


@dataclass(frozen=True)
class Candidate:
    """A deployed student that may be recommended: mean top-1 in percent, size in parameters."""

    label: str
    top1_percent: float
    test_images: int
    parameters: int | None = None


@dataclass(frozen=True)
class AccuracyDifference:
    """One top-1 minus another, in percentage points."""

    points: float
    standard_error: float

    @property
    def reading(self) -> str:
        """ "higher", "lower", or "not distinguishable" within two standard errors."""
        if abs(self.points) <= 2 * self.standard_error:
            return NOT_DISTINGUISHABLE
        return "higher" if self.points > 0 else "lower"


@dataclass(frozen=True)
class Recommendation:
    """The recommended student and the most accurate one; often the same."""

    label: str
    most_accurate: str
    difference: AccuracyDifference


def standard_error_percent(top1_percent: float, n: int) -> float:
    """Binomial standard error, in percentage points, of an accuracy on n test images.

    Raises:
        ValueError: the accuracy is outside 0..100 or there is no image.
    """
    if not 0 <= top1_percent <= 100:
        raise ValueError(f"an accuracy is between 0 and 100 percent, got {top1_percent}")
    if n < 1:
        raise ValueError(f"a standard error needs at least one test image, got {n}")
    share = top1_percent / 100
    return 100 * math.sqrt(share * (1 - share) / n)


def difference_standard_error(
    first_percent: float, first_n: int, second_percent: float, second_n: int
) -> float:
    """Standard error, in percentage points, of the difference of two independent accuracies."""
    return math.hypot(
        standard_error_percent(first_percent, first_n),
        standard_error_percent(second_percent, second_n),
    )


def difference(
    first_percent: float, first_n: int, second_percent: float, second_n: int
) -> AccuracyDifference:
    """First minus second, with its standard error."""
    error = difference_standard_error(first_percent, first_n, second_percent, second_n)
    return AccuracyDifference(first_percent - second_percent, error)


def rule(headline: str) -> str:
    """The rule of `recommend` in words; `headline` is LAST_EPOCH or SELECTED."""
    return (
        f"highest test accuracy ({headline}) among the deployed students; where a smaller "
        "student is within two standard errors of the test set of the best, the smallest of those"
    )


def recommend(rows: Sequence[Candidate]) -> Recommendation | None:
    """Apply `rule`. Without a parameter count a student cannot be called smaller.

    Students of equal size are ordered by accuracy, then by their place in `rows`.
    Returns None where there is no student.
    """
    if not rows:
        return None
    best = max(rows, key=lambda row: row.top1_percent)
    chosen = best
    for row in sorted(rows, key=lambda row: -row.top1_percent):
        if row.parameters is None or chosen.parameters is None:
            continue
        smaller = row.parameters < chosen.parameters
        if smaller and _from(row, best).reading == NOT_DISTINGUISHABLE:
            chosen = row
    return Recommendation(chosen.label, best.label, _from(chosen, best))


def _from(row: Candidate, best: Candidate) -> AccuracyDifference:
    return difference(row.top1_percent, row.test_images, best.top1_percent, best.test_images)
