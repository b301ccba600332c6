"""One network of the report, with its accuracies and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np

from compress.comparison.accuracy import (
    AccuracyDifference,
    Score,
    compare_classes,
    compare_scores,
)
from compress.comparison.predictions import Predictions
from compress.comparison.students import BASELINE, TOP1, score_of


@dataclass(frozen=True)
class Network:
    """One line of the result table: a teacher, or a deployed student with all its trials."""

    label: str
    is_teacher: bool
    trials: tuple[Mapping[str, Any], ...]
    account: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by batch size
    predictions: Mapping[int, Predictions] = field(default_factory=dict)  # by trial

    @property
    def title(self) -> str:
        """The name in tables and plots."""
        if self.is_teacher:
            return f"{self.label} ({self.model})"
        return f"student alone ({BASELINE})" if self.label == BASELINE else self.label

    @property
    def model(self) -> str:
        """The architecture of a teacher."""
        return str(self.trials[0].get("model", self.label))

    def percents(self, key: str) -> list[float]:
        """An accuracy of every trial that has it, in percent."""
        return [float(trial[key]) for trial in self.trials if trial.get(key) is not None]

    @property
    def top1_percent(self) -> float | None:
        """Mean last-epoch accuracy over the trials."""
        return self.mean_of(TOP1)

    def mean_of(self, key: str) -> float | None:
        """The mean of a number over the trials that have it."""
        values = self.percents(key)
        return mean(values) if values else None

    @property
    def test_images(self) -> int | None:
        """Images of the test set; every trial sees the same."""
        return self.score.test_images if self.score else None

    @property
    def score(self) -> Score | None:
        """Its accuracy on the test set, which can be compared with others."""
        return score_of(self.trials, self.predictions, fixed=self.is_teacher)

    @property
    def standard_error(self) -> float | None:
        """Standard error of `top1_percent` over test images, in percentage points."""
        return self.score.standard_error if self.score else None

    def minus(self, other: "Network | None") -> AccuracyDifference | None:
        """The difference in accuracy, where both networks have one."""
        if other is None or self.score is None or other.score is None:
            return None
        return compare_scores(self.score, other.score)

    def minus_by_class(self, other: "Network") -> dict[int, AccuracyDifference]:
        """Class -> the paired difference on its images; empty where there is no pairing."""
        if self.score is None or other.score is None:
            return {}
        return compare_classes(self.score, other.score)

    def by_class(self) -> dict[int, tuple[float, int]]:
        """Class -> mean accuracy in percent over the trials, test images; of saved predictions."""
        saved = [*self.predictions.values()]
        if not saved:
            return {}
        labels, correct = saved[0].labels, np.stack([one.correct for one in saved])
        return {
            int(label): (100 * float(correct[:, labels == label].mean()), int(count))
            for label, count in zip(*np.unique(labels, return_counts=True), strict=True)
        }
