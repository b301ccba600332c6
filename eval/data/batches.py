"""Batches whose order and mirroring are a pure function of (seed, epoch, index)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any, Generic, TypeVar

import torch

from compress.data.batch import BatchSource
from compress.distributed.collectives import own_rows, world_size
from compress.errors import UserError
from compress.seeding import generator

Example = TypeVar("Example")
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class KeyedBatches(Generic[Example, Batch]):
    """Shuffles `count` examples anew each epoch; the incomplete last batch is dropped.

    `read(index, mirrored, epoch)` gives one example and `collate` makes a batch of a list of them.
    With fewer examples than `batch_size` there is one batch of all. The global generator is not
    used. Each of several processes gets its part of every batch.
    """

    count: int
    batch_size: int
    seed: int
    flip: bool
    read: Callable[[int, bool, int], Example]
    collate: Callable[[list[Example]], Batch]

    def __post_init__(self) -> None:
        if (whole := min(self.count, self.batch_size)) < world_size():
            raise UserError(f"a batch of {whole} images is too small for {world_size()} processes")

    def __len__(self) -> int:
        return max(1, self.count // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        order = torch.randperm(self.count, generator=generator(self.seed, "order", epoch)).tolist()
        for step in range(len(self)):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = indices[own_rows(len(indices))]
            yield self.collate([self.read(i, self._is_mirrored(epoch, i), epoch) for i in own])

    def _is_mirrored(self, epoch: int, index: int) -> bool:
        if not self.flip:
            return False
        return bool(torch.rand(1, generator=generator(self.seed, "flip", epoch, index)) < 0.5)


@dataclass(frozen=True)
class _Stretched:
    """The same stream of batches, cut into epochs of another length."""

    batches: BatchSource
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterator[Any]:
        """Steps `epoch * steps` onwards of all epochs of the batches, one after the other."""
        first, skipped = divmod(epoch * self.steps, len(self.batches))
        stream = chain.from_iterable(self.batches.epoch(number) for number in count(first))
        return islice(stream, skipped, skipped + self.steps)


def in_iterations(batches: BatchSource, iterations: int) -> tuple[BatchSource, int]:
    """Batches and epochs that make `iterations` steps in all.

    The epochs, after each of which a checkpoint is written, are about as long as one pass over the
    data: their number is the divisor of `iterations` nearest to that, so round numbers serve best.
    THE loop's epochs are equally long: a prime number of steps is one epoch, without a checkpoint
    before its end, unless the data are so few that it is an epoch per step.
    """
    passes = iterations / len(batches)
    divisors = [n for n in range(1, iterations + 1) if iterations % n == 0]
    epochs = min(divisors, key=lambda n: abs(n - passes))
    return _Stretched(batches, iterations // epochs), epochs
