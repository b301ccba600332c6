"""What a network is trained for: the hard loss, and the metric that judges it.

Stages, loop and report ask the task; they never name a metric themselves.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.distributed.collectives import summed
from compress.precision import in_float32

_cross_entropy = in_float32(cross_entropy)


class Classification:
    """One label per image; judged by top-1 accuracy in percent, higher is better."""

    metric = "top1_percent"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of logits (N, K) with labels (N,), in float32 or wider."""
        return _cross_entropy(logits, labels)

    @torch.no_grad()
    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Top-1 accuracy over (images, labels) batches; the network is put in eval mode.

        It is that over the batches of all processes, each of which may have batches of its own.
        """
        network.eval()
        correct: Tensor | int = 0
        total = 0
        for images, labels in batches:
            correct = correct + (network(images).argmax(1) == labels).sum()
            total += len(labels)
        correct, total = summed(torch.tensor([int(correct), total])).tolist()
        return {self.metric: 100 * correct / total}

    def chance_percent(self, num_classes: int, images: int) -> float:
        """The metric of guessing, plus two standard errors of a test set of that many images."""
        share = 1 / num_classes
        return 100 * (share + 2 * math.sqrt(share * (1 - share) / images))
