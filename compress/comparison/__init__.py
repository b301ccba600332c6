"""Compare networks on the same test images, and recommend one of them.

>>> import numpy as np
>>> from compress.comparison import compare_correct, mcnemar_p_value
>>> small = np.array([True] * 8 + [False] * 2)
>>> large = np.array([True] * 9 + [False])
>>> paired = compare_correct(small, large)
>>> round(paired.difference, 3), paired.p_value
(-0.1, 1.0)
>>> round(mcnemar_p_value(2, 12), 4)
0.0129
"""

from compress.comparison.accuracy import (
    AccuracyDifference,
    Score,
    compare_classes,
    compare_scores,
    standard_error_percent,
)
from compress.comparison.paired import (
    PairedShares,
    compare_correct,
    holm,
    mcnemar_p_value,
    paired_interval,
    tango_interval,
)
from compress.comparison.predictions import Predictions, read_predictions, write_predictions
from compress.comparison.recommendation import Candidate, Recommendation, recommend, rule

__all__ = [
    "AccuracyDifference",
    "Candidate",
    "PairedShares",
    "Predictions",
    "Recommendation",
    "Score",
    "compare_classes",
    "compare_correct",
    "compare_scores",
    "holm",
    "mcnemar_p_value",
    "paired_interval",
    "read_predictions",
    "recommend",
    "rule",
    "standard_error_percent",
    "tango_interval",
    "write_predictions",
]
