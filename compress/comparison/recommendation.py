"""The recommended student among those that were trained, by a stated rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.comparison.accuracy import (
    NOT_DISTINGUISHABLE,
    AccuracyDifference,
    Score,
    compare_scores,
)

LAST_EPOCH = "last epoch"
SELECTED = "epoch chosen on validation"


@dataclass(frozen=True)
class Candidate:
    """A deployed student that may be recommended, and its size in parameters."""

    label: str
    score: Score
    parameters: int | None = None


@dataclass(frozen=True)
class Recommendation:
    """The recommended student and the most accurate one; often the same."""

    label: str
    most_accurate: str
    difference: AccuracyDifference


def rule(headline: str) -> str:
    """The rule of `recommend` in words; `headline` is LAST_EPOCH or SELECTED."""
    return (
        f"highest test accuracy ({headline}) among the deployed students; where smaller students "
        f"are {NOT_DISTINGUISHABLE} from the best on the same test images, the smallest of those"
    )


def recommend(rows: Sequence[Candidate]) -> Recommendation | None:
    """Apply `rule`. Without a parameter count a student cannot be called smaller.

    Students of equal size are ordered by accuracy, then by their place in `rows`.
    Returns None where there is no student.
    """
    if not rows:
        return None
    best = max(rows, key=lambda row: row.score.top1_percent)
    chosen = best
    for row in sorted(rows, key=lambda row: -row.score.top1_percent):
        if row.parameters is None or chosen.parameters is None:
            continue
        smaller = row.parameters < chosen.parameters
        if smaller and _from(row, best).reading == NOT_DISTINGUISHABLE:
            chosen = row
    return Recommendation(chosen.label, best.label, _from(chosen, best))


def _from(row: Candidate, best: Candidate) -> AccuracyDifference:
    return compare_scores(row.score, best.score)
