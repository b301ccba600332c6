"""Batches that several trainings read, each made once."""

from collections.abc import Iterator

from compress.data.batch import Batch, BatchSource
from compress.errors import UserError


class SharedBatches:
    """The batches of a source for trainings that take the same steps in turn.

    A batch is made when the first of them comes to its step and kept until one goes on. A training
    that comes to a step for the second time, after others have left it, gets it made again.
    """

    def __init__(self, source: BatchSource) -> None:
        self.source = source
        self._batches: Iterator[Batch] = iter(())
        self._epoch = -1
        self._step = -1
        self._batch: Batch | None = None

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        for step in range(len(self)):
            yield self._at(epoch, step)

    def _at(self, epoch: int, step: int) -> Batch:
        if epoch != self._epoch or step < self._step:
            self._batches, self._epoch, self._step = self.source.epoch(epoch), epoch, -1
        while self._step < step:
            try:
                self._batch = next(self._batches)
            except UserError:
                self._epoch = -1  # the next reader gets the same error
                raise
            self._step += 1
        assert self._batch is not None
        return self._batch
