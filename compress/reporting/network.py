"""One network of the report, with its accuracies and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from compress.reporting.ranking import AccuracyDifference, difference, standard_error_percent

BASELINE = "none"  # the label of the student that is trained without a teacher


@dataclass(frozen=True)
class Network:
    """One line of the result table: a teacher, or a deployed student with all its trials."""

    label: str
    is_teacher: bool
    trials: tuple[Mapping[str, Any], ...]
    account: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by batch size

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
        values = self.percents("top1_percent")
        return mean(values) if values else None

    @property
    def test_images(self) -> int | None:
        """Images of the test set; every trial sees the same."""
        counts = [trial["test_images"] for trial in self.trials if trial.get("test_images")]
        return int(counts[0]) if counts else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of `top1_percent` over test images, in percentage points."""
        if self.top1_percent is None or not self.test_images:
            return None
        return standard_error_percent(self.top1_percent, self.test_images)

    def minus(self, other: "Network | None") -> AccuracyDifference | None:
        """The difference in accuracy, where both networks have one."""
        if other is None or self.top1_percent is None or other.top1_percent is None:
            return None
        if not self.test_images or not other.test_images:
            return None
        return difference(
            self.top1_percent, self.test_images, other.top1_percent, other.test_images
        )
