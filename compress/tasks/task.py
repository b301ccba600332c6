"""The contract of a task: the hard loss, and the metric that evaluates a network."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor, nn


class Task(ABC):
    """Stages, loop and report ask the task; they never name a metric themselves."""

    metric: ClassVar[str]  # key of the metric in results and model files
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The hard loss, a mean over the labels that count."""

    @abstractmethod
    def counted_labels(self, labels: Tensor) -> int:
        """The number of labels that weigh in loss and metric."""

    @abstractmethod
    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """The metric over (images, labels) batches; the network is put in eval mode.

        It is that over the batches of all processes, each of which may have batches of its own.
        """

    def predict(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, NDArray[Any]]:
        """The arrays of a predictions file (`compress.comparison.predictions`), without `images`.

        The first axis of each is that of the images of all processes, which take turns at the
        batches. Every process gets all; none are empty for a task whose predictions are not kept.
        """
        return {}

    @abstractmethod
    def chance_level(self, num_classes: int, images: int) -> float:
        """The best that guessing reaches on a test set of that many images."""

    def is_better(self, value: float, other: float) -> bool:
        """Tell whether a value of the metric is better than another one."""
        return value > other if self.higher_is_better else value < other

    def format(self, value: float) -> str:
        """A value of the metric with its unit, for messages."""
        return f"{value:.2f} {self.unit}"
