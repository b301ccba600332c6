"""Arithmetic that stays in float32 or wider, whatever precision the networks run in."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Loss = TypeVar("Loss", bound=Callable[..., Any])


def in_float32(loss: Loss) -> Loss:
    """Make a loss compute in float32 or wider, inside autocast too.

    Half precision loses the small numbers that relations, divergences and means multiply; tensors
    among the positional arguments (or in lists there) are widened.
    """

    @functools.wraps(loss)
    def widened(*arguments: Any, **settings: Any) -> Any:
        wide = [_widened(a) for a in arguments]
        device = next(t for a in wide for t in (a if isinstance(a, list) else [a])).device
        with torch.autocast(device.type, enabled=False):
            return loss(*wide, **settings)

    return widened  # type: ignore[return-value]


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        is_half = value.is_floating_point() and value.element_size() < 4
        return value.float() if is_half else value
    return [_widened(v) for v in value] if isinstance(value, (list, tuple)) else value
