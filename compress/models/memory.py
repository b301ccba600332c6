"""Limit the memory that building a network from somebody else's description may take."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import UserError

# Initialisation needs room of its own, and parts that do not ship are built and dropped.
_FACTOR = 8
_ROOM_BYTES = 1 << 28


class _Limit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of every tensor that is made from nothing, before it is made."""

    def __init__(self, limit: int, weights: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = limit
        self.weights = weights

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs:  # factories alone have it
            shape_only = {**kwargs, "device": torch.device("meta"), "pin_memory": False}
            # Some overloads exist for their generator, which meta tensors take none of.
            has_generator = shape_only.pop("generator", None) is not None
            make = func.overloadpacket if has_generator else func
            self._take(make(*args, **shape_only))
        return func(*args, **kwargs)

    def _take(self, tensor: torch.Tensor) -> None:
        self.left -= tensor.numel() * tensor.element_size()
        if self.left < 0:
            raise UserError(
                f"{self.weights} does not fit its description: it holds "
                f"{self.weights.stat().st_size:,} bytes, a small part of the network described"
            )


@contextmanager
def limited_by(weights: Path) -> Iterator[None]:
    """Inside the block, refuse to build a network larger than the file `weights` can hold.

    Raises:
        UserError: the network would take many times the file's size; nothing is allocated.
    """
    if not weights.is_file():
        raise UserError(f"{weights} not found; its description is beside it")
    with _Limit(_FACTOR * weights.stat().st_size + _ROOM_BYTES, weights):
        yield
