"""One training step's images, and the parts that processes and accumulation make of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import mode
from typing import Any, Protocol

import torch
from torch import Tensor


class BatchSource(Protocol):
    """Batches of a training: each epoch's are a pure function of its number."""

    def __len__(self) -> int:
        """Steps per epoch."""
        ...

    def epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, counted from 0."""
        ...


@dataclass(frozen=True)
class Batch:
    """One training step's input, or this process's part of it.

    images: per view, normalised float32 (N, 3, S, S); view_ids: per view, the integer (N,) that
    identifies each image's augmentation; view_numbers: the same counted from 0 among the views that
    the image has in this training; labels (N,), or (N, S, S) of the first view's pixels, of which
    `counted` () in the whole step have a class (None: each image has a label); index (N,) of each
    image in the training set; epoch and step, counted from 0. A part begins at row `start` of the
    whole step's batch of `of` images (0: this is all of it); parts that `split` gives count the
    rows part by part. `observed` is what a method computed from the images before it gathered the
    rows of all processes.
    """

    images: tuple[Tensor, ...]
    view_ids: tuple[Tensor, ...]
    labels: Tensor
    index: Tensor
    epoch: int
    step: int
    view_numbers: tuple[Tensor, ...] = ()
    start: int = 0
    of: int = 0
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    counted: Tensor | None = None

    @property
    def whole(self) -> int:
        """Images of the whole step, those of other processes and parts included."""
        return self.of or len(self.index)

    @property
    def rows(self) -> Tensor:
        """The number (N,) of each image in the whole step's batch, part by part; on the CPU."""
        return torch.arange(self.start, self.start + len(self.index))

    @property
    def share(self) -> float:
        """The weight of this part's mean in the mean of the whole step."""
        return len(self.index) / self.whole

    def usual_part(self, parts: int) -> int:
        """The number of rows that most of so many parts have here."""
        return mode(len(part.index) for part in self.split(parts))

    def split(self, parts: int) -> list["Batch"]:
        """Parts of nearly equal size; as many as there are rows at most.

        Part p is rows p, p + parts, ... of the whole step's batch. However many processes divide
        it, a part has the same images in all of them together, which batch norm sees together.
        """
        cut, before = [], 0
        for number in range(parts):
            first = (number - self.start) % parts
            if first < len(self.index):
                start = before + (self.start + first) // parts
                cut.append(self._part(slice(first, None, parts), start))
            before += len(range(number, self.whole, parts))
        return cut

    def _part(self, rows: slice, start: int) -> "Batch":
        def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(t[rows].contiguous() for t in tensors)

        return replace(
            self,
            images=cut(self.images),
            view_ids=cut(self.view_ids),
            view_numbers=cut(self.view_numbers),
            labels=self.labels[rows].contiguous(),
            index=self.index[rows].contiguous(),
            start=start,
            of=self.whole,
        )
