"""Where the time of the loop's steps goes: networks, loss, backward, optimiser, everything else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

Call = TypeVar("Call", bound=Callable[..., Any])


class Pieces:
    """Seconds per piece of the loop that really runs; what is in no piece is overhead.

    The clock is read around each piece, so pieces and whole are of the same steps. `loss` is from
    the end of the last network's forward to the start of backward.
    """

    def __init__(self, settled: Callable[[], None], *, is_on: bool = True) -> None:
        """`settled` waits for the device; on a GPU that makes the steps slower: leave it off."""
        self._settled = settled
        self._is_on = is_on
        self._seconds: dict[str, float] = {}
        self._shown = 0.0  # when the last network was done

    def network(self, name: str, forward: Call) -> Call:
        """The same forward, timed."""
        if not self._is_on:
            return forward

        def timed(*arguments: Any) -> Any:
            with self._piece(name):
                shown = forward(*arguments)
            self._shown = time.perf_counter()
            return shown

        return timed  # type: ignore[return-value]

    def watch(self) -> None:
        """Time every backward and every step of an optimiser of this process from now on."""
        if not self._is_on:
            return
        backward = torch.Tensor.backward

        def timed(*arguments: Any, **settings: Any) -> None:
            self._settled()
            self._add("loss", self._shown)
            with self._piece("backward"):
                backward(*arguments, **settings)  # type: ignore[no-untyped-call]

        torch.Tensor.backward = timed  # type: ignore[method-assign]
        begun = [0.0]

        def begin(*_: Any) -> None:
            begun[0] = time.perf_counter()

        def end(*_: Any) -> None:
            self._settled()
            self._add("optimiser", begun[0])

        register_optimizer_step_pre_hook(begin)
        register_optimizer_step_post_hook(end)

    def taken(self) -> dict[str, dict[str, float]]:
        """`pieces`: seconds of each since the last call; nothing where it is off."""
        if not self._is_on:
            return {}
        seconds, self._seconds = self._seconds, {}
        return {"pieces": seconds}

    @contextmanager
    def _piece(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._settled()
        self._add(name, start)

    def _add(self, name: str, start: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
