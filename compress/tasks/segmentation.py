"""Semantic segmentation: cross entropy over the pixels, and mean intersection over union."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from compress.data.dense.masked_images import IGNORE_INDEX
from compress.distributed.collectives import all_gather_items
from compress.models.segmentation.pyramid import auxiliary_head, enlarge
from compress.precision import in_float32
from compress.taps import TapSpecs
from compress.tasks.confusion import confusion_matrix, segmentation_metrics
from compress.tasks.task import Task

_OVERLAP = 3  # neighbouring windows share a third of their side

_cross_entropy = in_float32(cross_entropy)


class Segmentation(Task):
    """A class for every pixel; evaluated by mean intersection over union, higher is better.

    A network returns logits (N, K, h, w) of normalised images (N, 3, H, W), in training and in eval
    mode, whatever H and W; labels are (N, H, W), 255 where a pixel has no class. Logits are
    enlarged to the labels' size (bilinear, aligned corners, as PSPNet and the papers that distil it
    do) for the loss and for what is predicted.

    `miou_percent` is from one confusion matrix over all pixels of all test images; a class that is
    neither there nor predicted does not count. Beside it stands `pixel_accuracy_percent`.
    """

    metric = "miou_percent"
    unit = "%"
    title = "Mean IoU"
    about = (
        "Mean IoU is from one confusion matrix over all pixels of the test images that have a "
        "class, the mean over the classes that are there or predicted. Differences, in brackets "
        "their 95 % interval, are of the same test images, which are drawn again with replacement "
        "(paired bootstrap): of one training each for other test images, of several trials, paired "
        "by their number, Student's t for other trainings as well. p is not corrected for the "
        "number of networks."
    )
    is_dense = True

    def __init__(self, window: int | None = None) -> None:
        """`window`: images are predicted in overlapping squares of so many pixels; None: whole."""
        self.window = window

    def loss(self, outputs: Tensor, labels: Tensor, of: Tensor | None = None) -> Tensor:
        """Mean cross entropy over the pixels that have a class, in float32 or wider.

        Args:
            outputs: logits (N, K, h, w).
            labels: (N, H, W).
            of: see `Task.loss`. A batch without any class has the loss 0.
        """
        count = (labels != IGNORE_INDEX).sum() if of is None else of
        logits = enlarge(outputs, labels.shape[-2:])
        total = _cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        return total / count.clamp(min=1)

    def counted_labels(self, labels: Tensor) -> int:
        """Pixels that have a class."""
        return int((labels != IGNORE_INDEX).sum())

    def auxiliary(self, specs: TapSpecs) -> nn.Module | None:
        """PSPNet's auxiliary head on the map before the last stage."""
        if specs.auxiliary is None:
            return None
        return auxiliary_head(specs.auxiliary.channels, specs.num_classes)

    def evaluate(
        self,
        network: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        references: Sequence[Tensor] = (),
    ) -> dict[str, float]:
        """Mean IoU and pixel accuracy, see the class."""
        total = self.predict(network, batches)["confusion"].sum(0, dtype=np.int64)
        metrics = segmentation_metrics(torch.from_numpy(total))
        return {key: metrics[key] for key in (self.metric, "pixel_accuracy_percent")}

    @torch.no_grad()
    def predict(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, NDArray[Any]]:
        """`confusion` (N, K, K) int32 of each image: rows are true classes, columns predicted."""
        network.eval()
        own = [self._confusion(network, images, labels) for images, labels in batches]
        turns = zip_longest(*all_gather_items([own]))
        in_order = [batch for turn in turns for batch in turn if batch is not None]
        return {"confusion": np.concatenate(in_order)}

    def classes(self, network: nn.Module, images: Tensor, size: Sequence[int]) -> Tensor:
        """Predicted classes (N, *size) of normalised images, by a network in eval mode."""
        height, width = size
        return enlarge(self._logits(network, images), (height, width)).argmax(1)

    def weakness(
        self,
        results: Mapping[str, float],
        reference: Tensor | None,
        *,
        num_classes: int,
        images: int,
    ) -> str | None:
        """It is no better than one class everywhere could be."""
        value, chance = results[self.metric], 100 / num_classes
        if self.is_better(value, chance):
            return None
        return (
            f"has a mean IoU of {self.format(value)} on {images} test images of {num_classes} "
            f"classes (one class everywhere reaches up to {self.format(chance)})"
        )

    def describe(self, results: Mapping[str, float]) -> str:
        """Both numbers."""
        pixels = results.get("pixel_accuracy_percent")
        beside = "" if pixels is None else f", {self.format(pixels)} of the pixels"
        return f"mean IoU {self.format(results[self.metric])}{beside}"

    def _confusion(self, network: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.int32]:
        logits = self._logits(network, images)
        predicted, count = enlarge(logits, labels.shape[-2:]).argmax(1), logits.shape[1]
        each = [
            confusion_matrix(truth, said, classes=count, ignore_index=IGNORE_INDEX)
            for truth, said in zip(labels, predicted, strict=True)
        ]
        counts: NDArray[np.int32] = torch.stack(each).to(torch.int32).cpu().numpy()
        return counts

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits of whole images, or the mean of those of windows at the images' size."""
        if self.window is None:
            logits: Tensor = network(images)
            return logits
        return sliding_logits(network, images, self.window)


def sliding_logits(network: nn.Module, images: Tensor, window: int) -> Tensor:
    """Mean logits (N, K, H, W) of overlapping square windows, which cover the images.

    Images that are smaller are filled up with the mean colour, below and right.
    """
    height, width = images.shape[-2:]
    padded = pad(images, (0, max(0, window - width), 0, max(0, window - height)))
    total: Tensor | None = None
    counts = padded.new_zeros(padded.shape[-2:])
    for top in _starts(padded.shape[-2], window):
        for left in _starts(padded.shape[-1], window):
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = enlarge(network(padded[place]), (window, window))
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *padded.shape[-2:])
            total[place] += logits
            counts[place] += 1
    assert total is not None
    return (total / counts)[..., :height, :width]


def _starts(length: int, window: int) -> list[int]:
    """First pixels of the windows: evenly, so that neighbours share a third of them or more."""
    stride = max(1, window - window // _OVERLAP)
    steps = -(-(length - window) // stride)
    return [round(i * (length - window) / steps) for i in range(steps + 1)] if steps else [0]
