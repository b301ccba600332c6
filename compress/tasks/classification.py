"""Image classification: cross entropy, and top-1 accuracy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.comparison.predictions import prediction_arrays
from compress.distributed.collectives import all_gather_items, all_reduce
from compress.precision import in_float32
from compress.tasks.task import Task

_cross_entropy = in_float32(cross_entropy)


class Classification(Task):
    """One label per image; evaluated by top-1 accuracy in percent, higher is better."""

    metric = "top1_percent"
    unit = "%"
    title = "Top-1"
    is_accuracy = True

    def loss(self, outputs: Tensor, labels: Tensor, of: Tensor | None = None) -> Tensor:
        """Mean cross entropy of logits (N, K) with labels (N,), in float32 or wider."""
        return _cross_entropy(outputs, labels)

    def counted_labels(self, labels: Tensor) -> int:
        """All of them."""
        return len(labels)

    @torch.no_grad()
    def evaluate(
        self,
        network: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        references: Sequence[Tensor] = (),
    ) -> dict[str, float]:
        """Top-1 accuracy, see `Task.evaluate`."""
        network.eval()
        correct: Tensor | int = 0
        total = 0
        for images, labels in batches:
            correct = correct + (network(images).argmax(1) == labels).sum()
            total += self.counted_labels(labels)
        correct, total = all_reduce(torch.tensor([int(correct), total])).tolist()
        return {self.metric: 100 * correct / total}

    @torch.no_grad()
    def predict(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, NDArray[Any]]:
        """Labels, predicted classes and probabilities, see `Task.predict`."""
        network.eval()
        own = [_predictions(network(images), labels) for images, labels in batches]
        turns = zip_longest(*all_gather_items([own]))
        in_order = [batch for turn in turns for batch in turn if batch is not None]
        return prediction_arrays(*map(np.concatenate, zip(*in_order, strict=True)))

    def weakness(
        self,
        results: Mapping[str, float],
        reference: Tensor | None,
        *,
        num_classes: int,
        images: int,
    ) -> str | None:
        """It is at chance."""
        value, chance = results[self.metric], self.chance_level(num_classes, images)
        if self.is_better(value, chance):
            return None
        return (
            f"is at chance: {self.format(value)} on {images} test images of {num_classes} classes "
            f"(guessing reaches up to {self.format(chance)})"
        )

    def chance_level(self, num_classes: int, images: int) -> float:
        """Accuracy of guessing, plus two standard errors of the test set."""
        share = 1 / num_classes
        return 100 * (share + 2 * math.sqrt(share * (1 - share) / images))


def _predictions(logits: Tensor, labels: Tensor) -> tuple[NDArray[Any], ...]:
    """Labels (N,), predicted classes (N,) and probabilities (N, K) of logits (N, K)."""
    probabilities = logits.float().softmax(1).half()
    return tuple(one.cpu().numpy() for one in (labels, logits.argmax(1), probabilities))
