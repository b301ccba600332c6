"""The contract of a task: the hard loss, and the metric that evaluates a network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.models.segmentation.pyramid import AUXILIARY_WEIGHT
from compress.taps import Taps, TapSpecs


class Task(ABC):
    """Stages, loop and report ask the task; they never name a metric themselves."""

    metric: ClassVar[str]  # key of the metric in results and model files
    unit: ClassVar[str]
    title: ClassVar[str]  # of the metric, in tables
    # The metric is a share of the test images, with the standard error of one.
    is_accuracy: ClassVar[bool] = False
    about: ClassVar[str] = ""  # what a report says of a metric that is none
    judged: ClassVar[Mapping[str, str]] = {}  # keys of `judge` and their titles in tables
    higher_is_better: ClassVar[bool] = True
    # Networks return logits (N, K) of the data's classes; else embeddings (N, D), and no label is
    # read.
    has_classes: ClassVar[bool] = True
    # Networks return logits of pixels (N, K, h, w), and every pixel has a label.
    is_dense: ClassVar[bool] = False

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor, of: Tensor | None = None) -> Tensor:
        """The hard loss, a mean over the labels that count.

        Args:
            of: a number () by which the sum is divided in the place of theirs, see `loss_of`.
        """

    def loss_of(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The hard loss of outputs and labels of a part of a step.

        Weighed by the parts' shares of the images, those of all parts are the mean over the labels
        of the whole step that count, however they are spread over parts and processes.
        """
        of = None if batch.counted is None else batch.counted * batch.share
        return partial(self.loss, of=of)

    def auxiliary(self, specs: TapSpecs) -> nn.Module | None:
        """A head that learns the same beside the network, and is thrown away afterwards.

        It maps the tap `auxiliary` (N, C, h, w) to outputs. None: the task has none, or the network
        no such map.
        """
        return None

    def auxiliary_loss(self, head: nn.Module, taps: Taps, batch: Batch) -> Tensor:
        """The hard loss of an auxiliary head, weighed by `AUXILIARY_WEIGHT`."""
        outputs = head(taps.tensor("auxiliary"))
        return AUXILIARY_WEIGHT * self.loss_of(batch)(outputs, batch.labels)

    @abstractmethod
    def counted_labels(self, labels: Tensor) -> int:
        """The number of labels that weigh in loss and metric."""

    @abstractmethod
    def evaluate(
        self,
        network: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        references: Sequence[Tensor] = (),
    ) -> dict[str, float]:
        """The metric over (images, labels) batches; the network is put in eval mode.

        It is that over the batches of all processes, each of which may have batches of its own.
        Without the metric it is empty: a network alone has none where it is compared with others.

        Args:
            references: what `reference` gives of each teacher on the same images.
        """

    def reference(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> Tensor | None:
        """The outputs (N, ...) of a teacher that its students are compared with; None: none."""
        return None

    def judge(
        self,
        network: nn.Module,
        train: tuple[Iterable[tuple[Tensor, Tensor]], Tensor],
        test: tuple[Iterable[tuple[Tensor, Tensor]], Tensor],
    ) -> dict[str, float]:
        """What labels that were hidden from training say of a trained network.

        Args:
            train: batches of the training images, not augmented, and their labels (M,).
            test: the same of the test images, (N,).
        """
        return {}

    def predict(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, NDArray[Any]]:
        """The arrays of a predictions file (`compress.comparison.predictions`), without `images`.

        The first axis of each is that of the images of all processes, which take turns at the
        batches. Every process gets all; none are empty for a task whose predictions are not kept.
        """
        return {}

    @abstractmethod
    def weakness(
        self,
        results: Mapping[str, float],
        reference: Tensor | None,
        *,
        num_classes: int,
        images: int,
    ) -> str | None:
        """Why nothing can be distilled from a teacher, as what it does; None where something can.

        Args:
            results: those of `evaluate` on so many test images.
            reference: that of the test images.
        """

    def describe(self, results: Mapping[str, float]) -> str:
        """A network's results in words, for messages."""
        return self.format(results[self.metric])

    def is_better(self, value: float, other: float) -> bool:
        """Tell whether a value of the metric is better than another one."""
        return value > other if self.higher_is_better else value < other

    def format(self, value: float) -> str:
        """A value of the metric with its unit, for messages."""
        return f"{value:.2f} {self.unit}"
