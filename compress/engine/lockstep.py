"""Trainings that take their steps in turn, so that they meet at the same batch.

Each has its own random numbers and its own log, as if it ran alone. The one that is furthest behind
goes first: students that were interrupted at different epochs catch up with each other.
"""

import contextvars
from collections.abc import Generator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from compress.console.messages import without_bars
from compress.engine.loop import Position
from compress.errors import UserError

Result = TypeVar("Result")


def in_lockstep(
    trainings: Sequence[Generator[Position, None, Result]],
) -> Generator[Position, None, list[Result]]:
    """Every training's result, in the order given; stops before each step.

    All of them have reached their first step before any takes it.

    Raises:
        UserError, OSError: of the first that failed, after the others have ended.
    """
    lanes = [_Lane(training) for training in trainings]
    try:
        while waiting := [lane for lane in lanes if lane.position is not None]:
            position = min(lane.position for lane in waiting if lane.position is not None)
            yield position
            for lane in waiting:
                if lane.position == position:
                    lane.advance()
    finally:
        for lane in lanes:
            lane.close()
    for lane in lanes:
        if lane.error is not None:
            raise lane.error
    return [lane.result for lane in lanes]


def drain(training: Generator[Position, None, Result]) -> Result:
    """Take every step of a training alone; what it returns at its end."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class _Lane(Generic[Result]):
    """A training with the state of the global generators and the context that it runs in."""

    result: Result

    def __init__(self, training: Generator[Position, None, Result]) -> None:
        self.training = training
        self.error: UserError | OSError | None = None
        self.position: Position | None = None
        self._context = contextvars.copy_context()
        self._context.run(without_bars)
        self._random = _random_state()
        self.advance()

    def advance(self) -> None:
        """Take one step, or start."""
        outside = _random_state()
        _set_random_state(self._random)
        try:
            self.position = self._context.run(next, self.training)
        except StopIteration as end:
            self.position, self.result = None, end.value
        except (UserError, OSError) as error:
            self.position, self.error = None, error
        finally:
            self._random = _random_state()
            _set_random_state(outside)

    def close(self) -> None:
        """End the training where it stands."""
        self._context.run(self.training.close)


def _random_state() -> list[Tensor]:
    devices = range(torch.cuda.device_count())
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, own in enumerate(state[1:]):
        torch.cuda.set_rng_state(own, device)
