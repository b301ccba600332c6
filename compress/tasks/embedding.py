"""Embedding of images without labels: a student is as good as its neighbours are its teacher's."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.distributed.collectives import all_gather_items
from compress.tasks.neighbours import knn_top1_percent, mutual_knn_percent
from compress.tasks.task import Task

_JUDGED = "knn_top1_percent"
# Of the squared length of embeddings: less is one and the same vector for every image.
_LEAST_SPREAD = 1e-8


class Embedding(Task):
    """No labels and no classes; evaluated by the neighbours that student and teacher share.

    A network returns one tensor of embeddings (N, D) of images (N, 3, H, W), in training and in
    eval mode: that of `models.build(name, num_classes=0)`, or what a method's `deploy` makes of it.
    D may differ from network to network, and the length of embeddings does not matter: neighbours
    are nearest by cosine. Its taps are those of `taps.discover(network, ..., embeds=True)`: its
    output is `pooled`, there are no `logits`.

    `mutual_knn_percent` (see `compress.tasks.neighbours`; k = 10) is that of a network and each of
    its teachers, their mean. A network alone, such as a teacher, has no metric. Where labels were
    hidden from training, a trained network is judged by `knn_top1_percent`, k = 10 too.
    """

    metric = "mutual_knn_percent"
    unit = "%"
    title = "Mutual k-NN"
    about = (
        "Mutual k-NN is that of a student and its teacher on the test images; a teacher has none. "
        "Its standard error is not known, and differences are not tested."
    )
    judged: ClassVar[Mapping[str, str]] = {_JUDGED: "k-NN top-1, hidden labels"}
    has_classes = False

    def loss(self, outputs: Tensor, labels: Tensor, of: Tensor | None = None) -> Tensor:
        """There is none.

        Raises:
            ValueError: always; the weight of hard labels is 0.
        """
        raise ValueError("there are no labels to learn from")

    def counted_labels(self, labels: Tensor) -> int:
        """None of them."""
        return 0

    def evaluate(
        self,
        network: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        references: Sequence[Tensor] = (),
    ) -> dict[str, float]:
        """Mutual neighbours with the references' mean; nothing without references."""
        if not references:
            return {}
        own = self.reference(network, batches)
        percents = [mutual_knn_percent(own, other) for other in references]
        return {self.metric: sum(percents) / len(percents)}

    @torch.no_grad()
    def reference(self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Embeddings (N, D) float32 of the images of all processes, on the CPU."""
        network.eval()
        own = [network(images).float().cpu() for images, _ in batches]
        turns = zip_longest(*all_gather_items([own]))
        return torch.cat([batch for turn in turns for batch in turn if batch is not None])

    def judge(
        self,
        network: nn.Module,
        train: tuple[Iterable[tuple[Tensor, Tensor]], Tensor],
        test: tuple[Iterable[tuple[Tensor, Tensor]], Tensor],
    ) -> dict[str, float]:
        """Top-1 of the majority class of the 10 nearest training images."""
        (train_batches, train_labels), (test_batches, test_labels) = train, test
        embeddings = [self.reference(network, batches) for batches in (train_batches, test_batches)]
        percent = knn_top1_percent(embeddings[0], train_labels, embeddings[1], test_labels)
        return {_JUDGED: percent}

    def describe(self, results: Mapping[str, float]) -> str:
        """Both numbers, as far as they are there."""
        parts = []
        if self.metric in results:
            parts.append(f"{self.format(results[self.metric])} of the teacher's neighbours")
        if _JUDGED in results:
            judged = self.format(results[_JUDGED])
            parts.append(f"k-NN top-1 {judged} by labels hidden from training")
        return ", ".join(parts) or "embeddings"

    def weakness(
        self,
        results: Mapping[str, float],
        reference: Tensor | None,
        *,
        num_classes: int,
        images: int,
    ) -> str | None:
        """Its embeddings are no finite numbers, or the same for every image."""
        if reference is None:
            return None
        if not reference.isfinite().all():
            return f"gives embeddings of {images} test images that are not all finite"
        spread, length = (
            e.double().square().sum(1).mean() for e in (reference - reference.mean(0), reference)
        )
        if spread <= _LEAST_SPREAD * length:
            return f"gives all {images} test images the same embedding"
        return None
